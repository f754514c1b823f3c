# ruff: noqa: D102 (the protocols' members are documented where they are implemented)
"""What a backend is, and what it is given: one small protocol and one bundle of everything already decided."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vsdiqp.backends import chroma
from vsdiqp.clip import ClipFormat, Run
from vsdiqp.tiles import TilePlan


class NetworkConfig(Protocol):
    """What the engine asks of a network's configuration; `vsdiqp.network.DiQPConfig` has it."""

    @property
    def name(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def tile(self) -> int: ...
    @property
    def overlap(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def align(self) -> int: ...
    @property
    def codecs(self) -> tuple[str, ...]: ...
    @property
    def qp_range(self) -> Mapping[str, tuple[int, int]]: ...
    @property
    def max_size(self) -> tuple[int, int] | None: ...
    @property
    def guide_size(self) -> tuple[int, int] | None: ...
    @property
    def uses_around(self) -> bool: ...
    @property
    def uses_ahead(self) -> bool: ...
    @property
    def look_ahead_frames(self) -> int: ...
    @property
    def neighbours(self) -> int: ...
    @property
    def seen(self) -> int: ...
    @property
    def first_pass(self) -> str: ...


class Predictor(Protocol):
    """What evaluates tiles: a torch module or an engine, on one device. Calls as `vsdiqp.network.DiQP` defines them."""

    def frame_guides(self, around: Tensor, ahead_scaled: Tensor, weight_decay: Tensor) -> Any: ...

    def predict(
        self,
        tile: Tensor,
        ahead_tile: Tensor,
        guides: Any,
        location: Tensor,
        weight_decay: Tensor,
        beside: Tensor | None = None,
    ) -> Tensor: ...


class Network(Predictor, Protocol):
    """What the engine asks of a network; `vsdiqp.network.DiQP` has it, and says what each call means."""

    @property
    def config(self) -> NetworkConfig: ...

    def locate(
        self,
        qp: float,
        codec: str,
        middle: int,
        frames: int,
        left: int,
        top: int,
        width: int,
        height: int,
        tile_h: int,
        tile_w: int,
    ) -> tuple[Tensor, float]: ...

    def confidence(self, qp: float, codec: str) -> float: ...

    def chroma_confidence(self, qp: float, codec: str) -> float: ...

    def to_precision(self, dtype: torch.dtype) -> Any: ...


@dataclass(frozen=True, slots=True)
class Task:
    """Everything a backend needs to know before the first frame, checked and with defaults filled in."""

    network: Network
    """On the CPU, in evaluation mode and fp32; the backend may convert it in place."""
    clip: ClipFormat
    plan: TilePlan
    strength: float
    """0..1, not 0: that case never reaches a backend."""
    precision: str = "auto"
    """"auto", "fp32", "fp16" or "bf16"."""
    batch: int | None = None
    """Tiles evaluated together; None leaves it to the backend."""
    device: tuple[int, ...] = (0,)
    """GPU indices; no meaning on the CPU."""

    def chroma_share(self, qp: float, codec: str) -> float:
        """What is applied of the residual's chroma beside its luma, at a QP and for the clip's format."""
        finer = chroma.is_finer(self.clip, self.network.config.colour)
        return self.network.chroma_confidence(qp, codec) * (chroma.SHARE if finer else 1.0)

    def as_trained(self, residual: Tensor) -> Tensor:
        """`chroma.as_trained` for the clip."""
        return chroma.as_trained(residual, self.clip, self.network.config.colour)

    @property
    def thumbnail(self) -> tuple[int, int]:
        """Height and width of the whole-frame thumbnails."""
        return self.network.config.guide_size or (self.plan.rows.side, self.plan.columns.side)


class Backend(Protocol):
    """Restores runs: planes in, planes out. Each module of this package with a device of its own has one.

    Such a module defines ``unavailable() -> str | None`` (why it can't run on this machine, None when it can; never
    raises, imports nothing heavy when it can tell without) and ``open_backend(task: Task) -> Backend``.
    """

    concurrency: int
    """Runs that may be in flight at once, each `restore` from a thread of its own; 1 means one at a time."""

    def restore(self, run: Run) -> None:
        """Write every wanted target of the run. The same run gives the same samples, whatever ran before.

        Raises DiqpError, after which the backend can be used for other runs.
        """
        ...

    def describe(self) -> str:
        """One line: device, precision, and what else was chosen."""
        ...

    def close(self) -> None:
        """Give back what the backend holds. No run may follow."""
        ...
