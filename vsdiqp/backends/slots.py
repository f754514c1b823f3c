"""One run at a time on a GPU: a slot bundles staging, stream, tensors and recorded work, so that nothing is allocated
and nobody else is waited for while frames are restored.

A run's way: planes -> page-locked staging (one copy by the CPU) -> the mirror of staging on the GPU -> `thumbnails` ->
the frames' guides -> for every batch `prepare_tiles`, the network -> `finish_planes` -> mirror -> staging -> planes.
Each frame sets out for the mirror as soon as it is staged, so the bus works while the CPU copies the next. Kernels
never reach over the bus themselves: that was measured at a fifth of what copies do. Networks with neighbours add the
search for motion, once a run, as soon as the frames that it needs are on their way, and `move_luma` to every batch.

Memory of a slot for a clip of S bytes a frame, T tiles of w x h pixels in batches of B: 7 S page-locked, and on the
GPU 7 S for the mirror, 36 T w h for the predictions, (66 or 132) B w h for tiles, results and look-ahead, and the
network's activations. K neighbours on each side add, for frames of W x H: 2 K S page-locked and on the GPU, 3 S more
of both where they come from a first pass, and on the GPU 24 K B w h and at most 8.8 (3 + 2 K) (W + 256) (H + 256).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsdiqp.backends.base import Network, Predictor, Task
from vsdiqp.backends.device import Device, Launcher, PageLocked
from vsdiqp.backends.memory import Size
from vsdiqp.clip import Planes, Run
from vsdiqp.errors import DiqpError
from vsdiqp.kernels import alignment, layouts, program
from vsdiqp.kernels.alignment import AlignmentProgram, Pairs
from vsdiqp.kernels.program import PlaneProgram
from vsdiqp.planes import identity


@dataclass(frozen=True, slots=True)
class Shared:
    """What the slots of a device have in common."""

    task: Task
    size: Size
    device: Device
    network: Network
    """For locations and confidence; on the CPU or any device."""
    predictor: Predictor
    launch: Launcher
    half_tiles: bool
    record: bool
    """Record the network's work (CUDA graphs)."""


class Slot:
    """See the module. Not for two threads at once."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        task, (plan, batch), device = shared.task, shared.size, shared.device
        clip, config = task.clip, shared.network.config
        self._stream = device.stream()
        self._captured: list[Callable[[], None]] = []
        thumbnail = config.guide_size or (plan.rows.side, plan.columns.side)
        self._starts = [(top, left) for top in plan.rows.starts for left in plan.columns.starts]
        self._firsts = [min(first, plan.count - batch) for first in range(0, plan.count, batch)]
        staged = layouts.StagedFrame.of(clip)
        self._inputs = layouts.FRAMES + 2 * config.neighbours + (layouts.GROUP if config.first_pass else 0)
        self._staging = device.page_locked((self._inputs + layouts.GROUP) * staged.nbytes)
        self._numbers: PageLocked | None = None
        try:
            samples = self._staging.array.view(layouts.sample_dtype(clip)).reshape(-1, staged.samples)
            self._views = [staged.views(frame) for frame in samples]
            self._numbers = device.page_locked((len(self._firsts) * 6 * batch + 1) * 8)
            with self._stream.use(), torch.inference_mode():
                self._host = torch.from_numpy(self._staging.array)
                self._mirror = torch.zeros(self._host.shape, dtype=torch.uint8, device=device.torch)
                self._allocate(plan.count, batch, (plan.rows.side, plan.columns.side), thumbnail)
                self._tables = {
                    name: torch.from_numpy(table).to(device.torch)
                    for name, table in program.tables(plan, thumbnail).items()
                }
                addresses = {name: table.data_ptr() for name, table in self._tables.items()}
                self._program = PlaneProgram(clip, plan, thumbnail, config.colour, addresses)
                self._alignment: AlignmentProgram | None = None
                if config.neighbours:
                    addresses |= {name: buffer.data_ptr() for name, buffer in self._buffers.items()}
                    self._alignment = AlignmentProgram(clip, plan, config.seen, config.colour, addresses)
                self._guide, self._predict = self._prepare_network()
            self._stream.wait()
        except BaseException:
            self.close()
            raise

    @property
    def fixed_bytes(self) -> int:
        """Memory on the GPU that a larger batch would not enlarge."""
        kept = (self._mirror, self._prediction, *self._tables.values(), *self._buffers.values())
        return sum(tensor.nbytes for tensor in kept)

    @property
    def shared_bytes(self) -> int:
        """Memory on the GPU of what its slots share: the weights."""
        predictor = self._shared.predictor
        weights = (*predictor.parameters(), *predictor.buffers()) if isinstance(predictor, torch.nn.Module) else ()
        return sum(tensor.nbytes for tensor in weights)

    def restore(self, run: Run) -> None:
        """See `Backend.restore`."""
        neighbours = self._shared.network.config.neighbours
        if neighbours and {len(run.before), len(run.after)} != {neighbours}:
            raise DiqpError(
                f"a run came with {len(run.before)} and {len(run.after)} frames around its group; this network "
                f"needs {neighbours} on each side"
            )
        try:
            with self._stream.use(), torch.inference_mode():
                self._queue(run)
        finally:
            # Also after an error: work that was queued before it still uses this slot.
            self._stream.wait()
        for views, target in zip(self._views[self._inputs :], run.targets, strict=True):
            if target is not None:
                for new, plane in zip(views, target, strict=True):
                    np.copyto(plane, new)

    def close(self) -> None:
        """Give back memory. No run may be under way."""
        self._stream.wait()
        # Both graphs at once, or neither: newer torch gives back a stream's cuBLAS workspace with any graph that was
        # captured on it (pytorch issue 193402), and the other graph would go on using it.
        self._captured.clear()
        self._guide = self._predict = _nothing  # they know this slot: it would outlive whoever held it
        for memory in (self._staging, self._numbers):
            if memory is not None:
                memory.free()

    # -- construction --------------------------------------------------------------------------------------------------

    def _allocate(self, count: int, batch: int, side: tuple[int, int], thumbnail: tuple[int, int]) -> None:
        shared = self._shared
        device, config = shared.device.torch, shared.network.config
        kind = torch.float16 if shared.half_tiles else torch.float32

        def pictures(wanted: bool, items: int, frames: int, size: tuple[int, int]) -> Tensor:
            return torch.zeros((items, 3, frames, *(size if wanted else (0, 0))), dtype=kind, device=device)

        self._tile = pictures(True, batch, 3, side)
        self._ahead = pictures(config.uses_ahead, batch, 2, side)
        self._around = pictures(config.uses_around, 1, 2, thumbnail)
        self._ahead_scaled = pictures(config.uses_ahead, 1, 2, thumbnail)
        self._location = torch.zeros((6, batch, 1), dtype=torch.float64, device=device)
        self._decay = torch.ones((1, 1, 1, 1, 1), dtype=torch.float32, device=device)
        self._prediction = torch.zeros((count, 3, 3, *side), dtype=torch.float32, device=device)
        self._result = torch.zeros((batch, 3, 3, *side), dtype=torch.float32, device=device)
        self._beside: tuple[Tensor, ...] = ()
        self._buffers: dict[str, Tensor] = {}
        if config.neighbours:
            self._beside = (torch.zeros((batch, 3, config.seen, *side), dtype=torch.float32, device=device),)
            sizes = alignment.buffers(shared.task.clip, config.seen)
            self._buffers = {n: torch.zeros(size, dtype=torch.uint8, device=device) for n, size in sizes.items()}

    def _prepare_network(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """The two parts of the network as work without arguments, over this slot's tensors."""
        predictor = self._shared.predictor
        guides: list[Any] = []

        def guide() -> None:
            guides[:] = [predictor.frame_guides(self._around, self._ahead_scaled, self._decay)]

        def predict() -> None:
            arguments = (self._tile, self._ahead, guides[0], self._location, self._decay, *self._beside)
            self._result.copy_(self._shared.task.as_trained(predictor.predict(*arguments)))

        for _ in range(2):  # libraries set themselves up, kernels are compiled
            guide()
            predict()
        self._stream.wait()
        if not self._shared.record:
            return guide, predict
        # What the calls above took this stream keeps; recording takes the same again, which only graphs may use.
        self._shared.device.trim()
        config = self._shared.network.config
        # Without guides there is nothing to record of them.
        guided = self._stream.capture(guide) if config.uses_around or config.uses_ahead else _nothing
        predicted = self._stream.capture(predict)
        self._captured.extend((guided, predicted))
        return guided, predicted

    # -- a run ---------------------------------------------------------------------------------------------------------

    def _queue(self, run: Run) -> None:
        """Stage a run and queue its work; early what the GPU can do while the CPU still has to do something."""
        shared, batch, uses_ahead = self._shared, self._shared.size.batch, self._shared.network.config.uses_ahead
        shown = [*run.frames, run.ahead] if uses_ahead else [*run.frames]
        whole = {identity(planes) for planes in shown}
        places: dict[tuple[int, ...], int] = {}
        pairs: Pairs | None = None
        if self._alignment is not None:
            if self._alignment.needs_chroma(run.colour):
                whole.update(map(identity, run.sequence))
            pairs = self._search(run, self._stage(run.sequence, whole, places))
        frames = [self._address(place) for place in self._stage(shown, whole, places)]
        thumbnails = self._program.thumbnails(run.colour, frames, _at(self._around), _at(self._ahead_scaled))
        if thumbnails is not None:
            shared.launch(thumbnails)
        numbers = self._locate(run)
        self._decay.copy_(numbers[-1:].view(1, 1, 1, 1, 1), non_blocking=True)
        self._guide()
        for index, first in enumerate(self._firsts):
            batch_numbers = numbers[index * 6 * batch : (index + 1) * 6 * batch].view(6, batch, 1)
            self._location.copy_(batch_numbers, non_blocking=True)
            shared.launch(self._program.prepare(run.colour, frames, first, batch, _at(self._tile), _at(self._ahead)))
            if self._alignment is not None and pairs is not None:
                shared.launch(self._alignment.move(pairs, first, batch, _at(self._beside[0])))
            self._predict()
            self._prediction[first : first + batch].copy_(self._result)
        wanted = {index: self._inputs + index for index, target in enumerate(run.targets) if target is not None}
        targets = [self._address(wanted[index]) if index in wanted else 0 for index in range(layouts.GROUP)]
        strength = shared.task.strength * shared.network.confidence(run.qp, run.codec)
        chroma = shared.task.chroma_share(run.qp, run.codec)
        shared.launch(self._program.finish(run.colour, frames, _at(self._prediction), targets, strength, chroma))
        for place in wanted.values():
            self._copy(self._host, self._mirror, place)

    def _stage(
        self, frames: Iterable[Planes], whole: set[tuple[int, ...]], places: dict[tuple[int, ...], int]
    ) -> list[int]:
        """Places of frames in staging and in the mirror. Those that ``places`` does not know yet are copied there, and
        get the next places; of those that are not in ``whole``, luma alone is."""
        found = []
        for planes in frames:
            key = identity(planes)
            if key not in places:
                place = places[key] = len(places)
                wanted = planes if key in whole else planes[:1]
                for view, plane in zip(self._views[place], wanted, strict=False):
                    np.copyto(view, plane)
                self._copy(self._mirror, self._host, place, len(wanted))
            found.append(places[key])
        return found

    def _copy(self, to: Tensor, source: Tensor, place: int, planes: int = 3) -> None:
        """Queue the copy of the first planes of the frame in a place between staging and the mirror."""
        staged = self._program.staged
        start = place * staged.nbytes
        end = start + staged.extent(planes)
        to[start:end].copy_(source[start:end], non_blocking=True)

    def _locate(self, run: Run) -> Tensor:
        """Locations of the tiles, batch by batch, and the weight decay, in page-locked memory."""
        clip, plan, batch = self._shared.task.clip, self._shared.size.plan, self._shared.size.batch
        side = (plan.rows.side, plan.columns.side)
        found = [
            self._shared.network.locate(
                run.qp, run.codec, run.middle, clip.frames, left, top, clip.width, clip.height, *side
            )
            for top, left in self._starts
        ]
        table = np.stack([location.numpy() for location, _ in found], 1)  # 6, tiles
        assert self._numbers is not None
        numbers = self._numbers.array.view(np.float64)
        for index, first in enumerate(self._firsts):
            numbers[index * 6 * batch : (index + 1) * 6 * batch] = table[:, first : first + batch].ravel()
        numbers[-1] = found[0][1]
        return torch.from_numpy(numbers)

    def _search(self, run: Run, sequence: list[int]) -> Pairs:
        """Queue the search for the motion between the frames of a run's sequence, which have these places."""
        assert self._alignment is not None
        pairs = Pairs.of(sequence, [target is not None for target in run.targets], self._shared.network.config.seen)
        frames = [self._address(place) for place in range(max(sequence) + 1)]
        for launch in self._alignment.search(run.colour, frames, pairs):
            self._shared.launch(launch)
        return pairs

    def _address(self, place: int) -> int:
        """On the GPU."""
        return self._mirror.data_ptr() + place * self._program.staged.nbytes


def _nothing() -> None:
    pass


def _at(tensor: Tensor) -> int:
    """The address of a tensor's numbers; 0 where there are none."""
    return tensor.data_ptr() if tensor.numel() else 0
