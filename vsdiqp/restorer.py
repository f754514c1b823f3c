"""A group of frames in, the same group restored: checks what was asked for, decides the rest, drives a backend.

Memory on the CPU, for a clip of W x H pixels in tiles of w x h: the frames themselves, the network's weights and
activations (its own, in proportion to w * h), and at most 36 * W * h + 132 * w * h + 20 * W * H bytes, and what
`vsdiqp.neighbours` says for networks with neighbours.
"""

import copy
import logging
import math
from typing import Final

import numpy as np

from vsdiqp import tiles
from vsdiqp.backends import candidates, free_tiles, open_backend
from vsdiqp.backends.base import Backend, Network, NetworkConfig, Task
from vsdiqp.clip import ClipFormat, Run, Settings
from vsdiqp.errors import DiqpError
from vsdiqp.neighbours import memory_bound as alignment_bound

SMALLEST: Final = 16
"""Least width and height of a frame."""
PRECISIONS: Final = ("auto", "fp32", "fp16", "bf16")

_log = logging.getLogger("vsdiqp")


class Restorer:
    """Restores runs of one clip with one network. Everything that can be refused is refused by the constructor.

    ``network`` stands in for the one that ``settings.model`` names; it must be in evaluation mode and on the CPU, and
    belongs to the restorer from then on. Raises DiqpError.
    """

    def __init__(self, settings: Settings, clip: ClipFormat, network: Network | None = None) -> None:
        _check(settings, clip)
        names = candidates(settings.backend)

        def task(name: str) -> Task:
            if network is None:
                from vsdiqp.network import load_checkpoint

                own: Network = load_checkpoint(default_model(name) if settings.model == "auto" else settings.model)
            else:
                # A backend makes the network its own; another that has to take over needs one as it was.
                own = network if len(names) == 1 else copy.deepcopy(network)
            _check_size(clip, own.config)
            if own.config.first_pass:
                from vsdiqp.network import read_first_pass

                read_first_pass(own.config.first_pass)
            plan = _plan(settings, clip, own.config, free_tiles(name))
            return Task(own, clip, plan, settings.strength, settings.precision, settings.batch, settings.device)

        self._backend: Backend | None = None
        if settings.strength > 0.0:
            self._backend, opened = open_backend(names, task)
        else:
            opened = task(names[0])
        self._network: Network | None = opened.network
        config = self._config = opened.network.config
        self.look_ahead = _look_ahead(settings, config)
        """T: frames between a group's last frame and its look-ahead frame. 0: the group's own last frame."""
        self.neighbours = config.neighbours if settings.strength > 0.0 else 0
        """Frames before and after a group that a run needs."""
        self.first_pass = config.first_pass if self.neighbours else ""
        """The model that restores frames before a run sees them as neighbours; empty: none."""
        self.reads_matrix = config.colour == "rgb" and settings.strength > 0.0
        """Whether the colour matrix of YUV clips makes a difference: others work in the clip's own planes."""
        self.codecs = config.codecs
        """Codecs that the network was trained for."""
        self.plan = opened.plan
        """Where the tiles lie."""
        _log.info("%s", self.describe())

    @property
    def concurrency(self) -> int:
        """Runs that may be restored at once, each from a thread of its own."""
        return 1 if self._backend is None else self._backend.concurrency

    def restore(self, run: Run) -> None:
        """Write the wanted targets of a run. Raises DiqpError; other runs may follow."""
        if run.codec not in self.codecs:
            raise DiqpError(
                f"the codec is {run.codec!r}, but model {self._config.name!r} was trained for "
                f"{' and '.join(self.codecs)}; choose another model"
            )
        expected = len(run.before) + len(run.frames) + len(run.after) if self.first_pass else 0
        if len(run.first) != expected:
            raise DiqpError(
                f"a run came with {len(run.first)} frames of a first pass; model {self._config.name!r} needs {expected}"
            )
        if not math.isfinite(run.qp):
            raise DiqpError(f"the QP of frame {run.middle} is {run.qp}; it must be a number on {run.codec}'s scale")
        # Far below the QPs it was trained on a network is not trusted at all, and need not run.
        if self._backend is not None and self._network is not None and self._network.confidence(run.qp, run.codec):
            self._backend.restore(run)
            return
        for source, target in zip(run.frames, run.targets, strict=True):
            if target is not None:
                for old, new in zip(source, target, strict=True):
                    np.copyto(new, old)

    def describe(self) -> str:
        """One line on what runs how."""
        if self._backend is None:
            return f"{self._config.name}: strength is 0, frames are copied"
        columns, rows, count = self.plan.columns, self.plan.rows, self.plan.count
        tiles_of = "1 tile of" if count == 1 else f"{count} tiles of"
        return f"{self._config.name} on {self._backend.describe()}, {tiles_of} {columns.side}x{rows.side}"

    def close(self) -> None:
        """Give back what the engine holds. No run may follow."""
        if self._backend is not None:
            self._backend.close()
        self._backend = self._network = None


def default_model(backend: str) -> str:
    """The shipped network that ``model="auto"`` means on a backend: the larger one where there is a GPU."""
    return "lite" if backend == "cpu" else "base"


def memory_bound(clip: ClipFormat, plan: tiles.TilePlan, seen: int = 0) -> int:
    """Bytes that one run needs on the CPU at most, besides its frames and the network (the formula above)."""
    columns, rows = plan.columns, plan.rows
    plain = 36 * clip.width * rows.side + 132 * columns.side * rows.side + 20 * clip.width * clip.height
    return plain + alignment_bound(clip, seen, (columns.side, rows.side))


def _check(settings: Settings, clip: ClipFormat) -> None:
    if not 0.0 <= settings.strength <= 1.0:
        raise DiqpError(f"strength is {settings.strength}; it may be 0 (no change) to 1 (all of it)")
    if settings.precision not in PRECISIONS:
        raise DiqpError(f"precision is {settings.precision!r}; it may be one of {', '.join(PRECISIONS)}")
    if settings.batch is not None and settings.batch < 1:
        raise DiqpError(f"batch is {settings.batch}; it may be 1 or more tiles, or be left out")
    if settings.look_ahead is not None and settings.look_ahead < 0:
        raise DiqpError(f"look_ahead is {settings.look_ahead}; it may be 0 or more frames, or be left out")
    if not settings.device or min(settings.device) < 0:
        raise DiqpError(f"device is {list(settings.device)}; it may be one or more GPU indices from 0 up")
    if min(clip.width, clip.height) < SMALLEST:
        raise DiqpError(f"the clip is {clip.width}x{clip.height}; frames must be {SMALLEST}x{SMALLEST} or larger")
    depths = range(8, 17) if clip.sample_type == "integer" else (16, 32)
    if clip.bits not in depths:
        raise DiqpError(
            f"the clip has {clip.bits} bit {clip.sample_type} samples; accepted are 8 to 16 bit integer, "
            "16 and 32 bit float: convert with core.resize first"
        )


def _check_size(clip: ClipFormat, config: NetworkConfig) -> None:
    limit = config.max_size
    if limit is not None and (clip.width > limit[0] or clip.height > limit[1]):
        raise DiqpError(
            f"the clip is {clip.width}x{clip.height}, but model {config.name!r} has location tables for frames up to "
            f"{limit[0]}x{limit[1]}; crop the clip or use a model without tables (model='lite')"
        )


def _look_ahead(settings: Settings, config: NetworkConfig) -> int:
    if not config.uses_ahead:
        return 0
    return config.look_ahead_frames if settings.look_ahead is None else settings.look_ahead


def _plan(settings: Settings, clip: ClipFormat, config: NetworkConfig, free: bool) -> tiles.TilePlan:
    multiple, align = config.multiple, config.align
    size = (clip.width, clip.height)
    if settings.tile is not None:
        tile = settings.tile
    elif free and config.max_size is None:
        overlap = config.overlap if settings.overlap is None else settings.overlap
        tile = tiles.best_tile(*size, config.tile, overlap, multiple, align)
    else:
        # Networks with location tables were trained with tiles and thumbnails of one size: leave them at it.
        tile = (config.tile, config.tile)
    overlap = max(0, min(config.overlap, min(tile) - align)) if settings.overlap is None else settings.overlap
    return tiles.plan(*size, tile, overlap, multiple, align)
