"""Reading and writing checkpoints: our .safetensors with their description, and released state dicts (.pt).

Nothing in a file is ever executed: safetensors holds tensors only, and released files are read with
``torch.load(weights_only=True)``.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vsdiqp.errors import DiqpError
from vsdiqp.network.config import DiQPConfig
from vsdiqp.network.diqp import DiQP

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
"""Where shipped checkpoints live."""
FORMAT = "vsdiqp-1"
METADATA_KEY = "vsdiqp"
_FIRST = "input_proj.proj.0.weight"
"""A released name that tells a DiQP state dict from all others."""
_MADE_HERE = ("relative_position_index", "attn_mask")
"""Ends of the names of buffers that follow from the configuration."""

# Released name -> ours, tried in order (spec/diqp.md, "State-dict names").
_RELEASED = [
    (r"^input_proj\.proj\.0\.", "stem.project."),
    (r"^output_proj\.proj\.0\.", "head.project."),
    (r"^encoderlayer_(\d+)\.", r"encoder.\1."),
    (r"^decoderlayer_(\d+)\.", r"decoder.\1."),
    (r"^conv\.blocks\.", "bottleneck.blocks."),
    (r"^dowsample_(\d+)\.conv\.0\.", r"down.\1."),
    (r"^upsample_(\d+)\.deconv\.0\.", r"up.\1."),
    (r"^upsample_(\d+)\.deconv\.1\.", r"up.\1.merge_"),
    (r"^encoderGuide\.encoder\.(\d+)\.(\d+)\.0\.0\.", r"look_around.levels.\1.pairs.\2.spatial."),
    (r"^encoderGuide\.encoder\.(\d+)\.(\d+)\.1\.0\.", r"look_around.levels.\1.pairs.\2.temporal."),
    (r"^decoderGuide\.bPicNet\.(\d+)\.(\d+)\.0\.0\.", r"look_ahead.cropped.levels.\1.pairs.\2.spatial."),
    (r"^decoderGuide\.bPicNet\.(\d+)\.(\d+)\.1\.0\.", r"look_ahead.cropped.levels.\1.pairs.\2.temporal."),
    (r"^decoderGuide\.sPicNet\.(\d+)\.(\d+)\.0\.0\.", r"look_ahead.scaled.levels.\1.pairs.\2.spatial."),
    (r"^decoderGuide\.sPicNet\.(\d+)\.(\d+)\.1\.0\.", r"look_ahead.scaled.levels.\1.pairs.\2.temporal."),
    (r"^lost\.stepEmbedding\.", "lost.tables.0."),
    (r"^lost\.frameNoEmbedding\.", "lost.tables.1."),
    (r"^lost\.widthEmbeddingOrg\.", "lost.tables.2."),
    (r"^lost\.lentghEmbeddingOrg\.", "lost.tables.3."),
    (r"^lost\.widthEmbeddingSl\.", "lost.tables.4."),
    (r"^lost\.lentghEmbeddingSl\.", "lost.tables.5."),
    (r"^lost\.proj\.0\.", "lost.project."),
]
_PARTS = [
    (r"\.attn\.qkv\.", ".attn."),
    (r"\.attn\.relative_position_bias_table$", ".attn.bias_table"),
    (r"\.mlp\.linear1\.0\.", ".ffn.expand."),
    (r"\.mlp\.dwconv\.0\.", ".ffn.depthwise."),
    (r"\.mlp\.linear2\.0\.", ".ffn.contract."),
    (r"\.merge_\.?", ".merge_"),
]


def released_name(name: str) -> str | None:
    """Our name for a released parameter; None for buffers that we make ourselves. Raises KeyError for a stranger."""
    if name.endswith(_MADE_HERE):
        return None
    for pattern, replacement in _RELEASED:
        mapped, hits = re.subn(pattern, replacement, name)
        if hits:
            for part, ours in _PARTS:
                mapped = re.sub(part, ours, mapped)
            return mapped
    raise KeyError(name)


def released_config(state: Mapping[str, Tensor], name: str = "released", codec: str | None = None) -> DiQPConfig:
    """The configuration of a released state dict, read off its shapes.

    codec: "hevc" or "av1"; None guesses from ``name`` (checkpoint_AV1.pt) and else allows both.
    """

    def depth(prefix: str) -> int:
        return len({m.group(1) for k in state if (m := re.match(re.escape(prefix) + r"\.blocks\.(\d+)\.", k))})

    levels = len({k.split(".")[0] for k in state if k.startswith("encoderlayer_")})
    stages = [f"encoderlayer_{i}" for i in range(levels)] + ["conv"] + [f"decoderlayer_{i}" for i in range(levels)]
    tables = [
        "stepEmbedding",
        "frameNoEmbedding",
        "widthEmbeddingOrg",
        "lentghEmbeddingOrg",
        "widthEmbeddingSl",
        "lentghEmbeddingSl",
    ]
    rows = [state[f"lost.{table}.weight"].shape[0] for table in tables]
    first_table = state["encoderlayer_0.blocks.0.attn.relative_position_bias_table"]
    expand = state["encoderlayer_0.blocks.0.mlp.linear1.0.weight"]
    if codec is None:
        codec = next((c for c in ("av1", "hevc") if c in name.lower()), None)
    ranges = {"hevc": (3, 51), "av1": (3, 255)}
    codecs = (codec,) if codec else ("hevc", "av1")
    return DiQPConfig(
        name=name,
        embed_dim=state["input_proj.proj.0.weight"].shape[0],
        depths=tuple(depth(stage) for stage in stages),
        heads=tuple(state[f"{s}.blocks.0.attn.relative_position_bias_table"].shape[1] for s in stages),
        window=(round(first_table.shape[0] ** 0.5) + 1) // 2,
        mlp_ratio=expand.shape[0] // expand.shape[1],
        look_around=tuple(state[f"encoderGuide.encoder.{i}.0.0.0.weight"].shape[0] for i in range(levels)),
        look_ahead=tuple(state[f"decoderGuide.bPicNet.{i}.0.0.0.weight"].shape[0] for i in range(levels)),
        table_rows=(rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]),
        tile=rows[4],
        codecs=codecs,
        qp_range={c: ranges[c] for c in codecs},
        origin="released DiQP checkpoint",
    )


def shipped() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def resolve(model: str | Path) -> Path:
    """The file of a shipped name, else of a path. Raises DiqpError naming what there is."""
    if str(model) in shipped():
        return WEIGHTS / f"{model}.safetensors"
    path = Path(model).expanduser()
    if path.is_file():
        return path
    raise DiqpError(
        f"no model {str(model)!r}: give the name of a shipped one ({', '.join(shipped()) or 'none is installed'}) or "
        f"the path of a .safetensors or released .pt checkpoint"
    )


def model_hash(model: str | Path) -> str:
    """16 hexadecimal digits that change with the checkpoint's file, or with that of its first pass."""
    digest = hashlib.sha256(resolve(model).read_bytes())
    first = read_config(model).first_pass
    if first:
        read_first_pass(first)
        digest.update(model_hash(first).encode())
    return digest.hexdigest()[:16]


def read_first_pass(model: str) -> DiQPConfig:
    """Describe the network of a first pass. Raises DiqpError where there is none, or where it has one itself."""
    config = read_config(model)
    if config.first_pass:
        raise DiqpError(
            f"model {model!r} cannot be a first pass: it has one itself ({config.first_pass!r}), and two passes are "
            f"as many as there may be"
        )
    return config


def read_config(model: str | Path) -> DiQPConfig:
    """Describe a checkpoint; of our own .safetensors files only the header is read."""
    return _read(resolve(model), weights=False)[0]


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> DiQP:
    """Load a network, ready for inference.

    path: a shipped name ("lite"), one of our .safetensors files, or a released state dict: .pt, alone or as training
    programs wrap one (`_state_dict`), or .safetensors. The result is a torch module in evaluation mode and fp32; see
    `DiQP.forward` for its call. Raises DiqpError when there is no such file, or it is damaged, or no DiQP checkpoint.
    """
    file = resolve(path)
    config, state = _read(file, weights=True)
    network = DiQP(config)
    _check_weights(network, state, file)
    network.load_state_dict(state, strict=True)
    return network.to(device).prepare()


def _check_weights(network: DiQP, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = network.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in wanted]
    for name in wanted.keys() & state.keys():
        given, shape = state[name], tuple(wanted[name].shape)
        if tuple(given.shape) != shape:
            problems.append(f"{name} is {tuple(given.shape)} instead of {shape}")
        elif wanted[name].is_floating_point() and not given.is_floating_point():
            problems.append(f"{name} holds {given.dtype} instead of floating point numbers")
        elif given.is_floating_point() and not given.isfinite().all():
            problems.append(f"{name} holds numbers that are not finite")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DiqpError(
            f"{path} does not fit the network it describes: {'; '.join(sorted(problems)[:3])}{more}; download or make "
            f"it again"
        )


def save_checkpoint(network: DiQP, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a network as .safetensors whose metadata holds its configuration and ``metadata`` (JSON values)."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in network.state_dict().items()}
    header = {"format": FORMAT, "config": network.config.to_dict(), **(metadata or {})}
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    # Not save_file, which makes files that only their owner can read.
    partial.write_bytes(save(state, {METADATA_KEY: json.dumps(header)}))
    partial.replace(target)


def read_metadata(model: str | Path) -> dict[str, Any]:
    """What `save_checkpoint` was given beside the network; empty for released checkpoints. Raises DiqpError."""
    path = resolve(model)
    if path.suffix != ".safetensors":
        return {}
    _read(path, weights=False)
    header: dict[str, Any] = json.loads(_read_metadata(path).get(METADATA_KEY, "{}"))
    return {name: value for name, value in header.items() if name not in ("format", "config")}


def _read_metadata(path: Path) -> dict[str, str]:
    return _opened(path, lambda file: file.metadata() or {})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    return _opened(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _opened[T](path: Path, read: Callable[[Any], T]) -> T:
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except (SafetensorError, OSError) as error:
        raise DiqpError(f"{path} is damaged or no .safetensors file ({error}); download or make it again") from None


def _read(path: Path, weights: bool) -> tuple[DiQPConfig, dict[str, Tensor]]:
    """The configuration of a checkpoint and its tensors by our names; without ``weights`` none where a header says the
    configuration, which that of a released state dict has to be read off."""
    if path.suffix != ".safetensors":
        return _convert(_read_pickled(path), path)
    metadata = _read_metadata(path)
    if METADATA_KEY in metadata:
        return _described(metadata[METADATA_KEY], path), _read_tensors(path) if weights else {}
    if not _opened(path, lambda file: _FIRST in file.keys()):  # noqa: SIM118
        raise DiqpError(
            f"{path} is a .safetensors file, but of another program: it lacks vsdiqp's description of the network. "
            f"Accepted are files made by 'vsdiqp train' or 'vsdiqp convert', and released DiQP state dicts"
        )
    return _convert(_read_tensors(path), path)


def _described(text: str, path: Path) -> DiQPConfig:
    """The configuration that a header describes."""
    try:
        header = json.loads(text)
        form = header.get("format")
        config = DiQPConfig.from_dict(header["config"]) if form == FORMAT else None
    except DiqpError as error:
        raise DiqpError(f"{path}: {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DiqpError(f"{path} is damaged: its description of the network cannot be read ({error!r})") from None
    if config is None:
        raise DiqpError(f"{path} has format {form!r}; this version of vsdiqp reads {FORMAT!r}: update vsdiqp")
    return config


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for many kinds of garbage
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DiqpError(f"{path} is no checkpoint that can be read safely ({reason})") from None
    state = _state_dict(content)
    if state is None:
        names = [str(name) for name in content] if isinstance(content, dict) else []
        found = f"a dictionary of {', '.join(names[:3])}, …" if names else f"a {type(content).__name__}"
        raise DiqpError(
            f"{path} is no DiQP checkpoint but {found}: accepted are released DiQP state dicts (.pt) and vsdiqp's own "
            f".safetensors"
        )
    return state


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """The DiQP state dict in what a training program saved: alone, or one of several values of a dictionary, its names
    with or without what torch's wrappers put before them (module., _orig_mod.). None where there is none."""
    if not isinstance(content, Mapping):
        return None
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    first = min((name for name in tensors if name.endswith(_FIRST)), key=len, default=None)
    if first is None:
        return next((state for value in content.values() if (state := _state_dict(value)) is not None), None)
    prefix = first.removesuffix(_FIRST)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _convert(released: Mapping[str, Tensor], path: Path) -> tuple[DiQPConfig, dict[str, Tensor]]:
    try:
        config = released_config(released, path.name)
        state = {}
        for name, tensor in released.items():
            mapped = released_name(name)
            if mapped is not None:
                state[mapped] = tensor
    except KeyError as error:
        raise DiqpError(f"{path} is no complete DiQP checkpoint: {error.args[0]} is missing or unknown") from None
    except (IndexError, AttributeError) as error:
        raise DiqpError(f"{path} is no DiQP checkpoint: what it holds has other shapes ({error})") from None
    return config, state
