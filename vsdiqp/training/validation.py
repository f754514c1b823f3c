"""What a network gains on a validation pool: one triplet of every stream, seen as the filter sees it."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP
from vsdiqp.training.batches import Batch, collate, predict, squared_errors, unsited
from vsdiqp.training.dataset import PoolDataset
from vsdiqp.training.loss import chroma_gain, luma_gain

UNHARMED = 1e-6
"""Squared error (60 dB) under which a frame has nothing to gain: a dB there says nothing of pictures."""
NOTHING = "the validation pool has no damaged frames of at least the network's smallest tile"


def autocast(device: torch.device, precision: str, cache: bool = True) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision as the settings name it: "fp32", "bf16" or "fp16". ``cache``: round a weight once a pass."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=cache)


@dataclass(frozen=True, slots=True)
class Restored:
    """A stream's triplet, and what a network made of it."""

    codec: str
    qp: float
    """As asked of the encoder."""
    bits: int
    batch: Batch
    """Of one sample."""
    tile: Tensor
    restored: Tensor
    """1, 3, 3, H, W in the network's colour, as ``tile``."""


@torch.no_grad()
def restored_streams(
    network: DiQP,
    dataset: PoolDataset,
    device: torch.device,
    precision: str,
    items: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Restored]:
    """Restore a triplet of every stream of ``items`` items, evenly spread (0: all).

    Unharmed ones are left out, and items that are smaller than the network's smallest tile.
    """
    rng = np.random.default_rng(0)
    network = deepcopy(network).to(device).eval()
    used = min(len(dataset), items or len(dataset))
    for index in range(used):
        item = dataset.load_item(index * len(dataset) // used)
        frames, height, width = item.source.y.shape
        side = network.config.multiple
        size = (height - height % side, width - width % side)
        for stream in item.degraded if min(size) else ():
            # Groups as the filter forms them: 3k, 3k+1, 3k+2, here frames 3 to 5 where there are so many.
            sample = dataset.sample_at(item, stream, min(4, frames - 2), (0, 0), size, nominal=True)
            error = squared_errors((sample.y, sample.c), (sample.y_true, sample.c_true), sample.bits)
            if error[0].min() < UNHARMED:
                continue
            batch = collate([sample], error[None], network, rng).to(device)
            with autocast(device, precision):
                tile, restored = predict(network, network.config, batch)
            yield Restored(stream.codec, stream.nominal, item.source.bits, batch, tile, restored.float())
        if progress is not None:
            progress(index + 1, used)


def validate(
    network: DiQP, dataset: PoolDataset, device: torch.device, precision: str, items: int = 0
) -> dict[str, float]:
    """Mean Y-PSNR gain in dB by codec and nominal QP, rounded to the clip's bits; "mean" and "worst" over all.

    Networks that restore the clip's own planes also tell "chroma" and "chroma_worst", over all planes Cb and Cr.
    ``items``: use so many, evenly spread; 0 uses all. Raises DiqpError where none has damaged frames.
    """
    sums: dict[str, list[float]] = defaultdict(list)
    chroma: list[float] = []
    for seen in restored_streams(network, dataset, device, precision, items):
        gain = luma_gain(seen.tile, seen.restored, seen.batch, network.config, luma_codes(seen.bits))
        sums[f"{seen.codec}{seen.qp:.0f}"].append(gain.mean().item())
        if network.config.colour == "ycbcr":
            residual = unsited((seen.restored - seen.tile)[:, 1:])
            chroma += chroma_gain(residual, seen.batch, chroma_codes(seen.bits)).flatten().tolist()
    result = {name: sum(v) / len(v) for name, v in sorted(sums.items())}
    everything = [g for v in sums.values() for g in v]
    if not everything:
        raise DiqpError(NOTHING)
    result["mean"] = sum(everything) / len(everything)
    result["worst"] = min(everything)
    if chroma:
        result["chroma"], result["chroma_worst"] = sum(chroma) / len(chroma), min(chroma)
    return result


def luma_codes(bits: int) -> int:
    """Code values of limited-range luma."""
    return 219 * (1 << (bits - 8))


def chroma_codes(bits: int) -> int:
    """Code values of limited-range chroma."""
    return 224 * (1 << (bits - 8))
