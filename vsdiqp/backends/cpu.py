"""The network as a plain torch module: on the CPU, and the reference that every other backend is compared with.

Memory, besides the network's own: 36 bytes a pixel for one row of tiles across the frame, 132 a pixel of one tile, and
at most 20 a pixel of one frame, while a thumbnail is made or a strip is written. Networks with neighbours add what
`vsdiqp.neighbours` says.
"""

import logging
import os

import torch
from torch import Tensor

from vsdiqp.allocation import keep_freed_memory
from vsdiqp.backends.base import Task
from vsdiqp.clip import Run
from vsdiqp.context import Thumbnailer, thumbnails
from vsdiqp.errors import DiqpError
from vsdiqp.neighbours import Neighbours
from vsdiqp.planes import FrameMap, frame_map, identity
from vsdiqp.tiles import Canvas

_log = logging.getLogger("vsdiqp")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

FREE_TILES = True
"""See `vsdiqp.backends.free_tiles`."""

THREADS_VARIABLE = "VSDIQP_THREADS"
"""Environment variable with the number of threads of one operation; unset leaves torch's own choice."""
MOST_THREADS = 1024
"""As many as it may be: OpenMP ends the process when the system has no more."""


def unavailable() -> str | None:
    """The CPU is always there."""
    return None


def open_backend(task: Task) -> "TorchBackend":
    """The network on the CPU."""
    if task.batch is not None or task.device != (0,):
        _log.warning("batch= and device= are for GPUs; the network runs on the CPU")
    keep_freed_memory()
    return TorchBackend(task, torch.device("cpu"), _precision(task.precision), _threads())


class TorchBackend:
    """Planes -> tiles -> network -> blend -> planes with torch on one device, one tile at a time.

    One tile at a time because more gain nothing on a CPU, and because convolutions choose other ways for other batch
    sizes: pixels would depend on how many tiles happened to be evaluated together.
    """

    concurrency = 1

    def __init__(self, task: Task, device: torch.device, precision: str, threads: int | None = None) -> None:
        self._task, self._device, self._precision, self._threads = task, device, precision, threads
        self._network = task.network
        self._network.to_precision(DTYPES[precision])
        clip, config = task.clip, task.network.config
        self._colour = config.colour
        self._thumbnailer = Thumbnailer(clip.width, clip.height, task.thumbnail, device)
        self._neighbours: Neighbours | None = None
        if config.neighbours:
            self._neighbours = Neighbours(clip, config.seen, threads or torch.get_num_threads())

    def restore(self, run: Run) -> None:
        """See `Backend.restore`."""
        if self._threads is not None:
            # A setting of the calling thread, so it belongs here and not into the constructor.
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            self._restore(run)

    def describe(self) -> str:
        """See `Backend.describe`."""
        return f"{self._device.type} ({self._precision}, {torch.get_num_threads()} threads)"

    def close(self) -> None:
        """Ends threads."""
        if self._neighbours is not None:
            self._neighbours.close()

    def _restore(self, run: Run) -> None:
        task, network, clip, plan = self._task, self._network, self._task.clip, self._task.plan
        strength = task.strength * network.confidence(run.qp, run.codec)
        chroma = task.chroma_share(run.qp, run.codec)
        frames = frame_map(clip, run.colour, self._colour, self._device)
        wanted = [index for index, target in enumerate(run.targets) if target is not None]
        config = network.config
        side = (plan.rows.side, plan.columns.side)

        def locate(left: int, top: int) -> tuple[Tensor, Tensor]:
            location, decay = network.locate(
                run.qp, run.codec, run.middle, clip.frames, left, top, clip.width, clip.height, *side
            )
            decays = torch.full((1, 1, 1, 1, 1), decay, dtype=torch.float32, device=self._device)
            return location.view(6, 1, 1).to(self._device), decays

        around, ahead_scaled = thumbnails(run, frames, self._thumbnailer, config.uses_around, config.uses_ahead)
        guides = network.frame_guides(around, ahead_scaled, locate(0, 0)[1])
        del around, ahead_scaled

        beside: tuple[Tensor, ...] = ()
        if self._neighbours is not None:
            self._neighbours.begin(run, frames)
            beside = (torch.empty((1, 3, config.seen, *side), dtype=torch.float32),)
        tile = torch.empty((1, 3, 3, *side), dtype=torch.float32, device=self._device)
        size = (1, 3, 2, *(side if config.uses_ahead else (0, 0)))
        ahead_tile = torch.empty(size, dtype=torch.float32, device=self._device)
        canvas = Canvas(plan, (len(wanted), 3), frames.margin, frames.row_step, self._device)
        for top in plan.rows.starts:
            for column, left in enumerate(plan.columns.starts):
                self._cut(run, frames, left, top, tile, ahead_tile)
                if self._neighbours is not None:
                    self._neighbours.fill(left, top, tile[0, 0], beside[0][0])
                residual = task.as_trained(network.predict(tile, ahead_tile, guides, *locate(left, top), *beside))
                # A value that overflowed must not reach the picture: there it means no change.
                canvas.add(column, residual[0].transpose(0, 1)[wanted].nan_to_num_(0.0, 0.0, 0.0))
            strip = canvas.end_row()
            if strip.start == strip.stop:
                continue
            for position, index in enumerate(wanted):
                target = run.targets[index]
                assert target is not None
                change = strip.values[position]
                frames.add(run.frames[index], target, change, strip.first, strip.start, strip.stop, strength, chroma)

    @staticmethod
    def _cut(run: Run, frames: FrameMap, left: int, top: int, tile: Tensor, ahead_tile: Tensor) -> None:
        seen: dict[tuple[int, ...], int] = {}
        for index, planes in enumerate(run.frames):
            before = seen.setdefault(identity(planes), index)
            if before < index:
                tile[0, :, index] = tile[0, :, before]
            else:
                frames.read(planes, left, top, tile[0, :, index])
        if ahead_tile.numel():
            ahead_tile[0, :, 0] = tile[0, :, 2]
            frames.read(run.ahead, left, top, ahead_tile[0, :, 1])


def _precision(asked: str) -> str:
    if asked == "fp16":
        raise DiqpError("precision is 'fp16', which the CPU backend doesn't have; it may be 'auto', 'fp32' or 'bf16'")
    if asked != "auto":
        return asked
    # Without the instructions torch emulates bf16, slower than fp32.
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def _threads() -> int | None:
    value = os.environ.get(THREADS_VARIABLE)
    if value is None:
        return None
    if not value.isdecimal() or not 1 <= int(value) <= MOST_THREADS:
        raise DiqpError(f"{THREADS_VARIABLE} is {value!r}; it may be a whole number, 1 to {MOST_THREADS}, or unset")
    return int(value)
