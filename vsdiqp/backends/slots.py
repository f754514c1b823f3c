"""One run at a time on a GPU: a slot bundles staging, stream, tensors and recorded work, so that nothing is allocated
and nobody else is waited for while frames are restored.

A run's way: planes -> mapped staging (one copy by the CPU) -> `thumbnails` -> the frames' guides -> for every batch
`prepare_tiles`, the network -> `finish_planes` -> mapped staging -> planes. Kernels read and write staging themselves,
so no copy is queued but that of the tiles' locations (48 bytes a tile).

Memory of a slot for a clip of S bytes a frame, T tiles of w x h pixels in batches of B: 7 S page-locked, and on the
GPU 36 T w h for the predictions, (66 or 132) B w h for tiles, results and look-ahead, and the network's activations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsdiqp.backends.base import Network, Task
from vsdiqp.backends.device import Device, Launcher, Mapped
from vsdiqp.backends.memory import Size
from vsdiqp.clip import Planes, Run
from vsdiqp.kernels import layouts, program
from vsdiqp.kernels.program import PlaneProgram


class Predictor(Protocol):
    """What evaluates tiles: a torch module or an engine, on one device. Calls as `DiQP` defines them."""

    def frame_guides(self, around: Tensor, ahead_scaled: Tensor, weight_decay: Tensor) -> Any:
        """Guides of whole frames, as tensors in (nested) tuples."""
        ...

    def predict(self, tile: Tensor, ahead_tile: Tensor, guides: Any, location: Tensor, weight_decay: Tensor) -> Tensor:
        """The residual of a batch: B, 3, 3, H, W."""
        ...


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
        self._staging = device.map((layouts.FRAMES + layouts.GROUP) * staged.nbytes)
        self._numbers: Mapped | None = None
        try:
            self._numbers = device.map((len(self._firsts) * 6 * batch + 1) * 8)
            with self._stream.use(), torch.inference_mode():
                self._allocate(plan.count, batch, (plan.rows.side, plan.columns.side), thumbnail)
                self._tables = {
                    name: torch.from_numpy(table).to(device.torch)
                    for name, table in program.tables(plan, thumbnail).items()
                }
                addresses = {name: table.data_ptr() for name, table in self._tables.items()}
                self._program = PlaneProgram(clip, plan, thumbnail, config.colour, addresses)
                self._guide, self._predict = self._prepare_network()
            self._stream.wait()
        except BaseException:
            self.close()
            raise

    def restore(self, run: Run) -> None:
        """See `Backend.restore`."""
        shared = self._shared
        strength = shared.task.strength * shared.network.confidence(run.qp, run.codec)
        frames = self._stage(run)
        self._locate(run)
        try:
            with self._stream.use(), torch.inference_mode():
                self._queue(run, frames, strength)
        finally:
            # Also after an error: work that was queued before it still uses this slot.
            self._stream.wait()
        for views, target in zip(self._outputs(), run.targets, strict=True):
            if target is not None:
                for new, plane in zip(views, target, strict=True):
                    np.copyto(plane, new)

    def close(self) -> None:
        """Give back memory. No run may be under way."""
        self._stream.wait()
        self._captured.clear()
        for mapped in (self._staging, self._numbers):
            if mapped is not None:
                mapped.free()

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

    def _prepare_network(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """The two parts of the network as work without arguments, over this slot's tensors."""
        predictor = self._shared.predictor
        guides: list[Any] = []

        def guide() -> None:
            guides[:] = [predictor.frame_guides(self._around, self._ahead_scaled, self._decay)]

        def predict() -> None:
            self._result.copy_(predictor.predict(self._tile, self._ahead, guides[0], self._location, self._decay))

        for _ in range(2):  # libraries set themselves up, kernels are compiled
            guide()
            predict()
        self._stream.wait()
        if not self._shared.record:
            return guide, predict
        recorded = self._stream.capture(guide), self._stream.capture(predict)
        self._captured.extend(recorded)
        return recorded

    # -- a run ---------------------------------------------------------------------------------------------------------

    def _stage(self, run: Run) -> list[int]:
        """Copy the frames to staging, each once; addresses of n-1, n, n+1 and, where wanted, the look-ahead frame."""
        staged = self._program.staged
        wanted: list[Planes] = [*run.frames]
        if self._shared.network.config.uses_ahead:
            wanted.append(run.ahead)
        placed: dict[tuple[int, ...], int] = {}
        addresses = []
        for planes in wanted:
            key = tuple(plane.__array_interface__["data"][0] for plane in planes)
            if key not in placed:
                index = len(placed)
                for view, plane in zip(staged.views(self._frame(index)), planes, strict=True):
                    np.copyto(view, plane)
                placed[key] = self._address(index)
            addresses.append(placed[key])
        return addresses

    def _locate(self, run: Run) -> None:
        """Locations of the tiles, batch by batch, and the weight decay, into mapped memory."""
        clip, plan, batch = self._shared.task.clip, self._shared.size.plan, self._shared.size.batch
        side = (plan.rows.side, plan.columns.side)
        found = [
            self._shared.network.locate(
                run.qp, run.codec, run.middle, clip.frames, left, top, clip.width, clip.height, *side
            )
            for top, left in self._starts
        ]
        table = np.stack([location.numpy() for location, _ in found], 1)  # 6, tiles
        numbers = self._mapped_numbers()
        for index, first in enumerate(self._firsts):
            numbers[index * 6 * batch : (index + 1) * 6 * batch] = table[:, first : first + batch].ravel()
        numbers[-1] = found[0][1]

    def _queue(self, run: Run, frames: list[int], strength: float) -> None:
        shared, batch = self._shared, self._shared.size.batch
        numbers = torch.from_numpy(self._mapped_numbers())
        self._decay.copy_(numbers[-1:].view(1, 1, 1, 1, 1), non_blocking=True)
        thumbnails = self._program.thumbnails(run.colour, frames, _at(self._around), _at(self._ahead_scaled))
        if thumbnails is not None:
            shared.launch(thumbnails)
        self._guide()
        for index, first in enumerate(self._firsts):
            batch_numbers = numbers[index * 6 * batch : (index + 1) * 6 * batch].view(6, batch, 1)
            self._location.copy_(batch_numbers, non_blocking=True)
            shared.launch(self._program.prepare(run.colour, frames, first, batch, _at(self._tile), _at(self._ahead)))
            self._predict()
            self._prediction[first : first + batch].copy_(self._result)
        targets = [
            self._address(layouts.FRAMES + index) if target is not None else 0
            for index, target in enumerate(run.targets)
        ]
        shared.launch(self._program.finish(run.colour, frames, _at(self._prediction), targets, strength))

    def _outputs(self) -> list[Planes]:
        return [self._program.staged.views(self._frame(layouts.FRAMES + index)) for index in range(layouts.GROUP)]

    def _frame(self, index: int) -> NDArray[Any]:
        kind = layouts.sample_dtype(self._shared.task.clip)
        size = self._program.staged.nbytes
        return self._staging.array[index * size : (index + 1) * size].view(kind)

    def _address(self, index: int) -> int:
        return self._staging.address + index * self._program.staged.nbytes

    def _mapped_numbers(self) -> NDArray[np.float64]:
        assert self._numbers is not None
        return self._numbers.array.view(np.float64)


def _at(tensor: Tensor) -> int:
    """The address of a tensor's numbers; 0 where there are none."""
    return tensor.data_ptr() if tensor.numel() else 0
