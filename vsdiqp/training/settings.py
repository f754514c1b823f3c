"""What a training run is made of: one TOML file, read into frozen dataclasses."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vsdiqp.errors import DiqpError
from vsdiqp.network.config import DiQPConfig

CONFIGS = Path(__file__).resolve().parent / "configs"
"""Shipped configurations."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """A run. Paths are relative to the working directory."""

    network: DiQPConfig
    pool: str
    """Folder of the training pool (``vsdiqp pool``)."""
    validation: str = ""
    """Folder of the validation pool; empty trains without validation."""
    out: str = "out/train"
    """Folder for checkpoints, state and logs."""
    steps: int = 100_000
    """Optimiser steps of the whole schedule."""
    batch: int = 16
    """Samples a step and process."""
    crop: int = 128
    """Side of a sample in pixels, a multiple of the network's."""
    optimiser: str = "adamw"
    """"adamw" (the paper's), or "muon" for weight matrices with AdamW for the rest."""
    learning_rate: float = 2e-4
    final_learning_rate: float = 1e-6
    warmup: int = 500
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.02
    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is validated and shipped."""
    loss: str = "charbonnier"
    """"charbonnier" (the paper's), or "relative": squared error over the whole frame's error before restoration."""
    chroma_weight: float = 0.1
    """Weight of each chroma plane beside luma; for colour "ycbcr" only."""
    teacher: str = ""
    """What to imitate first: a file of closed-form filters (``vsdiqp train --fit-teacher``), or the checkpoint of a
    network with the same inputs; empty starts with the truth."""
    teacher_steps: tuple[int, int] = (1000, 2000)
    """Imitate alone up to the first step, then fade to the truth until the second."""
    upside_down: float = 0.0
    """Share of batches that the network is shown upside down. (Not mirrored: chroma is sited left.)"""
    consistency: float = 0.0
    """Weight of the distance to what the network that the run starts from makes of the same samples, mirrored. What two
    answers differ in is error, told of without the noise that the truth carries; for colour "ycbcr" only."""
    precision: str = "bf16"
    """"fp32", "bf16" or "fp16" (GPU only, with a gradient scaler)."""
    seed: int = 1
    refresh_every: int = 200
    """Steps between looks for new items in a pool that is still growing."""
    validate_every: int = 1000
    save_every: int = 250
    cache_gib: float = 8.0
    """Memory for decoded items; as much again for those of the validation pool."""
    makers: int = 0
    """Who makes batches: 0 is one thread on a CPU, on a GPU as many processes as it has cores but two, 16 at most."""
    reuse: int = 1
    """How often a sample is used, at most and on the mean. Above 1 the newest ``reservoir`` samples are kept on the
    device and batches are drawn from them: for GPUs that are faster than whoever feeds them."""
    reservoir: int = 4096
    """Samples to keep, about 2 MB each for base at a crop of 128."""
    form: str = "auto"
    """How the network runs on a GPU: "eager", "graph" (recorded as CUDA graphs), "compile" (torch.compile), or "auto":
    recorded, but eager on several GPUs."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    minutes: float = 0.0
    """Stop (resumable) after this long; 0 runs to the last step."""
    by_time: bool = False
    """The learning rate's schedule ends after ``minutes`` of training in all, if that is before the last step."""
    initial: str = ""
    """Checkpoint whose weights to start from; parameters that do not fit stay as they are."""
    origin: str = ""
    """How the weights were made; goes into the checkpoint."""


POSITIVE = ("steps", "batch", "crop", "refresh_every", "save_every", "validate_every")
NOT_NEGATIVE: tuple[str, ...] = (
    "learning_rate",
    "final_learning_rate",
    "warmup",
    "weight_decay",
    "clip_norm",
    "chroma_weight",
)
NOT_NEGATIVE += ("cache_gib", "makers", "threads", "minutes")


def _check_kind(path: Path, name: str, value: Any, default: Any) -> None:
    """Raises DiqpError for a value of another kind than a setting's default: text for a number, and the like."""
    kinds: Any = {float: (int, float)}.get(type(default), type(default))
    right = isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)
    if right and isinstance(default, tuple):
        numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in value)
        right = numbers and len(value) == len(default)
    if not right:
        like = list(default) if isinstance(default, tuple) else default
        raise DiqpError(f"{path}: {name} is {value!r}; give something like {like!r}")


def load_settings(config: str | Path, overrides: dict[str, Any] | None = None) -> TrainSettings:
    """Read a shipped configuration by name, or a TOML file by path, and apply ``overrides``.

    Raises DiqpError naming keys that are unknown or missing.
    """
    path = Path(config)
    if not path.is_file():
        path = CONFIGS / f"{config}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml")))
        raise DiqpError(f"no training configuration {str(config)!r}: give a TOML file or one of {names}")
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DiqpError(f"{path} is no valid TOML file: {error}") from None
    values.update({k: v for k, v in (overrides or {}).items() if v is not None})
    network = values.pop("network", None)
    if network is None:
        raise DiqpError(f"{path} has no [network] table; see the shipped configurations in {CONFIGS.name}/")
    known = {f.name for f in fields(TrainSettings)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise DiqpError(f"{path} has unknown settings: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    if not values.get("pool"):
        raise DiqpError("no training pool: give --pool FOLDER, made with 'vsdiqp pool SOURCES FOLDER'")
    cleaned: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for field in fields(TrainSettings):
        if field.name in cleaned:
            _check_kind(path, field.name, cleaned[field.name], "" if field.name == "pool" else field.default)
    settings = TrainSettings(network=DiQPConfig.from_dict(network), **cleaned)
    for name in POSITIVE:
        if getattr(settings, name) < 1:
            raise DiqpError(f"{name} is {getattr(settings, name)}; give 1 or more")
    for name in NOT_NEGATIVE:
        if getattr(settings, name) < 0:
            raise DiqpError(f"{name} is {getattr(settings, name):g}; give 0 or more")
    if settings.crop % settings.network.multiple:
        raise DiqpError(f"crop is {settings.crop}; this network needs a multiple of {settings.network.multiple}")
    if settings.optimiser not in ("adamw", "muon"):
        raise DiqpError(f"optimiser is {settings.optimiser!r}; give adamw or muon")
    if settings.form not in ("auto", "eager", "graph", "compile"):
        raise DiqpError(f"form is {settings.form!r}; give auto, eager, graph or compile")
    if not 0 <= settings.upside_down <= 1:
        raise DiqpError(f"upside_down is {settings.upside_down}; it is a share of the batches, 0 to 1")
    learnt = bool(settings.initial) and settings.network.colour == "ycbcr"
    if settings.consistency < 0 or (settings.consistency and not learnt):
        raise DiqpError(
            f"consistency is {settings.consistency}, colour {settings.network.colour!r} and initial "
            f"{settings.initial!r}; it is a weight, 0 or more, and 0 but with colour 'ycbcr' and an initial network"
        )
    if settings.reuse < 1 or settings.reservoir < settings.batch:
        raise DiqpError(
            f"reuse is {settings.reuse} and reservoir {settings.reservoir}; reuse is at least 1, and the reservoir "
            f"holds at least a batch ({settings.batch})"
        )
    if settings.by_time and settings.minutes <= 0:
        raise DiqpError("by_time needs minutes: give --minutes, the length of the whole run")
    if settings.loss not in ("charbonnier", "relative"):
        raise DiqpError(f"loss is {settings.loss!r}; give charbonnier or relative")
    if settings.precision not in ("fp32", "bf16", "fp16"):
        raise DiqpError(f"precision is {settings.precision!r}; give fp32, bf16 or fp16")
    return settings
