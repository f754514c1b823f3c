"""The formulas behind the test vectors: weights and inputs as integer hashes, exact on every machine.

Values in tests/data were computed with them by the released model; see tests/data/README.md.
"""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vsdiqp.network import DiQP, DiQPConfig
from vsdiqp.network.checkpoint import released_name

DATA = Path(__file__).resolve().parent.parent / "data"
KEYS: dict[str, list[int]] = json.loads((DATA / "released_keys.json").read_text())["keys"]
MASK = np.uint64(0xFFFFFFFF)

GAINS = (
    (r"^lost\.proj\.0\.weight$", 3.0),
    (r"^output_proj\.proj\.0\.weight$", 0.06),
    (r"^(dowsample|upsample)_\d\.", 0.8),
    (r"\.attn\.(qkv\.to_q|qkv\.to_kv|proj)\.weight$", 1.5),
)


def mix(index: np.ndarray, seed: int) -> np.ndarray:
    h = (index * np.uint64(0x9E3779B1) + np.uint64(seed)) & MASK
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(0x85EBCA6B)) & MASK
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(0xC2B2AE35)) & MASK
    return h ^ (h >> np.uint64(16))


def symmetric(count: int, name: str) -> np.ndarray:
    """``count`` values in [-1, 1), multiples of 2^-23, float64."""
    h = mix(np.arange(count, dtype=np.uint64), zlib.crc32(name.encode("ascii")))
    return (h >> np.uint64(8)).astype(np.float64) * 2.0**-23 - 1.0


def weight(key: str, shape: Sequence[int]) -> Tensor:
    """The value of a released parameter."""
    s = symmetric(int(np.prod(shape)), key)
    if re.search(r"\.norm[12]\.weight$", key):
        v = 1 + 0.25 * s
    elif re.search(r"\.norm[12]\.bias$", key):
        v = 0.25 * s
    elif key.endswith("relative_position_bias_table"):
        v = s
    elif key.startswith("lost.") and "Embedding" in key:
        v = 0.9 * s
    elif key.endswith(".bias"):
        v = 0.2 * s
    else:
        fan = 2 * shape[0] if re.match(r"^upsample_\d\.deconv\.0\.weight$", key) else int(np.prod(shape[1:]))
        v = next((g for p, g in GAINS if re.search(p, key)), 1.0) * np.sqrt(3.0 / fan) * s
    return torch.from_numpy(v.astype(np.float32).reshape(tuple(shape)))


def triangle(t: np.ndarray, period: int) -> np.ndarray:
    t = np.mod(t, period)
    return np.minimum(t, period - t)


def picture(name: str, side: int) -> Tensor:
    """One RGB picture, 3, side, side in 0..1."""
    seed = zlib.crc32(name.encode("ascii"))
    phase = seed % 97
    c = np.arange(3, dtype=np.int64)[:, None, None]
    y = np.arange(side, dtype=np.int64)[None, :, None]
    x = np.arange(side, dtype=np.int64)[None, None, :]
    slow = triangle(3 * x + 2 * y + 7 * phase + 31 * c, 200) + triangle(5 * x - 4 * y + 11 * phase + 17 * c, 120)
    noise = (mix(np.arange(3 * side * side, dtype=np.uint64), seed) >> np.uint64(26)).astype(np.int64)
    return torch.from_numpy((16 + slow + noise.reshape(3, side, side)).astype(np.float32) / np.float32(255))


Inputs = dict[str, Tensor]


def location(side: int, qp: int = 51, middle: int = 101, left: int = 2345, top: int = 1234) -> Tensor:
    rows = [qp // 3, middle // 2, left, top, int(left * (side / 7680)), int(top * (side / 4096))]
    return torch.tensor(rows).view(6, 1, 1)


def inputs(side: int) -> Inputs:
    """The arguments of ``forward`` for the base case."""

    def stack(*names: str) -> Tensor:
        return torch.stack([picture(n, side) for n in names], 1)[None]

    return {
        "tile": stack("x/0", "x/1", "x/2"),
        "around": stack("around/0", "around/2"),
        "ahead_tile": stack("x/2", "aheadCropped/0"),
        "ahead_scaled": stack("around/2", "aheadScaled/0"),
        "location": location(side),
        "weight_decay": torch.tensor((300 - 101) / 300, dtype=torch.float32).view(1, 1, 1, 1, 1),
    }


def variations(side: int) -> dict[str, Inputs]:
    """The inputs of every ``var_*`` array."""
    base = inputs(side)
    decay = base["weight_decay"]
    black_future = {k: torch.stack([base[k][:, :, 0], torch.zeros_like(base[k][:, :, 1])], 2) for k in AHEAD}
    changes: dict[str, Mapping[str, Tensor]] = {
        "qp255": {"location": location(side, qp=255)},
        "middle297_wd001": {"location": location(side, middle=297), "weight_decay": torch.full_like(decay, 0.01)},
        "left7168_top3584": {"location": location(side, left=7168, top=3584)},
        "around_swapped": {"around": base["around"].flip(2)},
        "around_black": {"around": torch.zeros_like(base["around"])},
        "future_black": black_future,
        "ahead_roles_swapped": {"ahead_tile": base["ahead_scaled"], "ahead_scaled": base["ahead_tile"]},
        "wd1": {"weight_decay": torch.ones_like(decay)},
    }
    return {name: {**base, **change} for name, change in changes.items()}


AHEAD = ("ahead_tile", "ahead_scaled")


def shapes(config: DiQPConfig) -> dict[str, list[int]]:
    """Released names and shapes for a configuration with other depths, widths or tables than the released one."""
    ours = {name: list(tensor.shape) for name, tensor in DiQP(config).state_dict().items()}
    return {key: ours[name] for key in KEYS if (name := released_name(key)) in ours}


def network(config: DiQPConfig) -> DiQP:
    """A network of the released family with the vectors' weights."""
    net = DiQP(config)
    state = {released_name(key): weight(key, shape) for key, shape in shapes(config).items()}
    net.load_state_dict(state, strict=True)
    return net.prepare()


A = DiQPConfig(depths=(1,) * 9, tile=128, table_rows=(86, 151, 8192, 4320, 128, 128))
B = DiQPConfig()
S = DiQPConfig(embed_dim=6, depths=(1,) * 9, tile=128, table_rows=(86, 151, 8192, 4320, 128, 128))
