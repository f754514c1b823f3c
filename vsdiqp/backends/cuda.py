"""The network on NVIDIA GPUs through torch, with planes, tiles and blending as CUDA kernels (`vsdiqp.kernels`).

``VSDIQP_CUDA_NETWORK`` chooses the form of the network: "fused" (Triton kernels; the default from compute capability
8.0 up), "compile" (torch.compile) or "eager" (the plain module; the default below). docs/gpu.md says what is measured.
"""

import copy
import importlib.util
import logging
import os
import queue
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Final, cast

import torch

from vsdiqp.backends import memory, trial
from vsdiqp.backends.base import Network, Predictor, Task
from vsdiqp.backends.device import CudaDevice, Device, as_if_small
from vsdiqp.backends.memory import Size
from vsdiqp.backends.slots import Shared, Slot
from vsdiqp.clip import Run
from vsdiqp.errors import BackendError, DiqpError

DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORM_VARIABLE: Final = "VSDIQP_CUDA_NETWORK"
COMPILE_MODE: Final = "max-autotune-no-cudagraphs"
FORMS: Final = ("fused", "compile", "eager")
FREE_TILES: Final = True
"""See `vsdiqp.backends.free_tiles`."""
TRIAL: Final[dict[str, Any]] = {"batch": 8, "times": 8, "ways": (nullcontext, as_if_small)}
"""How a form is tried: with many tiles at once and many answers in a row, so that what is sometimes wrong only is more
likely to show, and also as on a small GPU, so that programs go on from piece to piece of a small tile, too."""
SLOTS: Final = 2
"""Runs in flight on each GPU: while one computes, another's planes travel."""

MakePredictor = Callable[[Network, Device, Size], Predictor]
"""A network (fp32, on the CPU, the callee's own) on a device, for tiles of a size."""

_log = logging.getLogger("vsdiqp")


def unavailable() -> str | None:
    """Why there is no CUDA here."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "no NVIDIA GPU that torch can use was found" if built else "torch is installed without CUDA"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed: pip install cupy-cuda13x"
    return None


def open_backend(task: Task) -> "GpuBackend":
    """The network on the GPUs of the task: in the form for them, or, if that turns out not to work there and nobody
    asked for it, as the plain module, with one line in the log. Raises DiqpError."""
    devices = cuda_devices(task.device)
    precision = "fp16" if task.precision == "auto" else task.precision
    asked = os.environ.get(FORM_VARIABLE)
    form = network_form(asked, torch.cuda.get_device_capability(task.device[0]))
    before = ""
    if not asked and form != "eager":
        try:
            return _open_form(task, devices, precision, form)
        except _Unusable as error:
            _log.warning(
                "the %s form of the network can't be used on this GPU, so the plain module is, which is several times "
                "slower: %s", form, error,
            )  # fmt: skip
            before, form = f"; nor could the {form} form: {error}", "eager"
    try:
        return _open_form(task, devices, precision, form)
    except _Unusable as error:
        # With what was wrong first: a GPU that has faulted once refuses everything after it in the same words.
        raise BackendError(f"the {form} form of the network can't be used on this GPU: {error}{before}") from error


class _Unusable(Exception):
    """A form of the network fails on this machine, or answers wrongly."""


def _open_form(task: Task, devices: list[Device], precision: str, form: str) -> "GpuBackend":
    """A backend with the network in a form. Raises _Unusable, DiqpError."""
    dtype = DTYPES[precision]

    def predictor(network: Network, device: Device, size: Size | None = None) -> Predictor:
        return make_network(network, form, dtype, device.torch)

    try:
        if form == "fused":
            for device in devices:
                _try(task, predictor, device, precision)
        return GpuBackend(task, devices, precision, form, predictor, record=True)
    except (DiqpError, _Unusable):
        raise
    except Exception as error:  # compilers fail in many ways
        if memory.ran_out(error):
            raise memory.too_little(task.plan) from error
        raise _Unusable(f"{type(error).__name__}: {str(error).strip()[:500]}") from error


def _try(task: Task, make: Callable[[Network, Device], Predictor], device: Device, precision: str) -> None:
    """Raises _Unusable with what `trial` objects to."""
    network = task.network
    half, tile = half_tiles(network, precision), trial.tile_like(task.plan, network.config)
    try:
        made = make(copy.deepcopy(network), device)
        found = trial.objection(network, made, device.torch, DTYPES[precision], tile, half_tiles=half, **TRIAL)
    except Exception as error:
        if not memory.ran_out(error):
            raise
        return  # the backend will find what fits, or say that nothing does
    finally:
        device.trim()
    if found:
        raise _Unusable(f"{device.name}: {found}; please report this with what 'vsdiqp info' prints")


def half_tiles(network: Network, precision: str) -> bool:
    """Whether the fused form of a network is given tiles in fp16: full-resolution stems read that; others compute
    differences first, which need the full width."""
    return precision == "fp16" and getattr(network.config, "stem_scale", 2) == 1


def cuda_devices(indices: Sequence[int]) -> list[Device]:
    """The GPUs with these indices. Raises DiqpError naming those that exist."""
    count = torch.cuda.device_count()
    for index in indices:
        if not 0 <= index < count:
            raise DiqpError(f"device is {index}; this machine has {count} GPU(s), counted from 0")
    return [CudaDevice(index) for index in dict.fromkeys(indices)]


def network_form(asked: str | None, capability: tuple[int, int]) -> str:
    """The form of the network: as asked, else by what the GPU and the installation can do."""
    if asked:
        if asked not in FORMS:
            raise DiqpError(f"{FORM_VARIABLE} is {asked!r}; it may be one of {', '.join(FORMS)}, or unset")
        return asked
    if importlib.util.find_spec("triton") is None:
        return "eager"
    # Below 8.0 Triton has no tensor cores to multiply with. torch.compile was never seen to finish, and a script that
    # does not open is worse than one that is slow.
    return "fused" if capability >= (8, 0) else "eager"


def make_network(network: Network, form: str, dtype: torch.dtype, device: torch.device) -> Predictor:
    """Put a network (fp32, on the CPU) on a device in one of `FORMS`."""
    from vsdiqp.network import DiQP

    set_exactness(dtype)
    if form == "fused" and isinstance(network, DiQP):
        from vsdiqp.backends.fused import fuse

        return cast(Predictor, fuse(network, dtype).to(device))
    network.to_precision(dtype)
    plain = cast(torch.nn.Module, network).to(device)
    if form == "compile":
        return CompiledNetwork(plain)
    return cast(Predictor, plain)


def set_exactness(dtype: torch.dtype) -> None:
    """fp32 is for checks: no shortened mantissas in torch's convolutions either."""
    if dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False


class CompiledNetwork:
    """A network whose calls go through torch.compile; CUDA graphs are the slot's own business."""

    def __init__(self, network: torch.nn.Module) -> None:
        compiler: Any = torch.compile
        self.frame_guides = compiler(network.frame_guides, dynamic=False, mode=COMPILE_MODE)
        self.predict = compiler(network.predict, dynamic=False, mode=COMPILE_MODE)


class GpuBackend:
    """Runs on slots: two a GPU, handed out in turn to whoever asked first.

    Pixels depend neither on the slot nor on the GPU (if the GPUs are alike): every slot evaluates the same tiles in the
    same batches.
    """

    def __init__(
        self,
        task: Task,
        devices: Sequence[Device],
        precision: str,
        form: str,
        predictor: MakePredictor,
        record: bool,
        batch: int | None = None,
    ) -> None:
        """``record``: the network's work may be recorded; ``batch``: where the task has none, instead of measuring."""
        self._task, self._devices, self._precision, self._form = task, list(devices), precision, form
        self._predictor, self._record = predictor, record
        self._half_tiles = form == "fused" and half_tiles(task.network, precision)
        batch = task.batch or batch
        first = Size(task.plan, memory.even(task.plan.count, batch) if batch else self._fitting_batch())
        self._slots, self._size = memory.climb_down(task, first, self._open, self._trim)
        if self._size != first:
            _log.warning(
                "too little GPU memory for tiles of %dx%d in batches of %d: taking %dx%d in batches of %d",
                first.plan.columns.side, first.plan.rows.side, first.batch,
                self._size.plan.columns.side, self._size.plan.rows.side, self._size.batch,
            )  # fmt: skip
        self.concurrency = len(self._slots)
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)

    def restore(self, run: Run) -> None:
        """See `Backend.restore`."""
        slot = self._free.get()
        try:
            slot.restore(run)
        except Exception as error:
            if not memory.ran_out(error):
                raise
            raise DiqpError(
                "the GPU ran out of memory, which other programs may have taken since the script was opened; "
                f"set batch= below {self._size.batch} or tile= below "
                f"{self._size.plan.columns.side}, or close those programs"
            ) from None
        finally:
            self._free.put(slot)

    def describe(self) -> str:
        """See `Backend.describe`."""
        plan = self._size.plan
        names = ", ".join(device.name for device in self._devices)
        return (
            f"{self._form} on {names} ({self._precision}, {plan.count} tiles of {plan.columns.side}x{plan.rows.side}, "
            f"batches of {self._size.batch}, {SLOTS} runs in flight a GPU)"
        )

    def close(self) -> None:
        """See `Backend.close`."""
        slots, self._slots = self._slots, []
        while slots:
            self._free.get()  # or the queue would hold on to them
            slots.pop().close()
        self._trim()  # or torch would keep what recorded work had until the process ends

    def _trim(self) -> None:
        for device in self._devices:
            device.trim()

    def _open(self, size: Size, devices: Sequence[Device] | None = None, slots: int = SLOTS) -> list[Slot]:
        """Slots on every GPU, alternating between them; gives everything back if one doesn't fit."""
        opened: list[Slot] = []
        try:
            shared = [self._share(device, size) for device in devices or self._devices]
            for _ in range(slots):
                opened.extend(Slot(one) for one in shared)
        except BaseException:
            for slot in opened:
                slot.close()
            raise
        return opened

    def _share(self, device: Device, size: Size) -> Shared:
        network = copy.deepcopy(self._task.network)
        return Shared(
            self._task,
            size,
            device,
            self._task.network,
            self._predictor(network, device, size),
            device.launcher(self._task.clip, self._half_tiles, self._task.network.config.seen),
            self._half_tiles,
            self._record,
        )

    def _fitting_batch(self) -> int:
        """Batch by what a slot takes for itself and for one tile, and what is free, on the GPU with the least."""
        least = min(self._devices, key=lambda device: device.free_memory())
        free, used = least.free_memory(), least.watch_memory()
        if self._task.network.config.first_pass:
            free //= 2  # the first pass opens a backend of its own after this one
        probe = self._probe(least)
        if not probe:
            self._trim()  # out here: the error knew what was made
            return 1
        taken, fixed, shared = used(), probe[0].fixed_bytes, probe[0].shared_bytes
        for slot in probe:
            slot.close()
        return memory.batch_for(free - shared, fixed, taken - fixed - shared, SLOTS, self._task.plan.count)

    def _probe(self, device: Device) -> list[Slot]:
        """One slot for one tile at a time on a GPU; none if there is no room for it."""
        try:
            return self._open(Size(self._task.plan, 1), [device], 1)
        except Exception as error:
            if not memory.ran_out(error):
                raise
            return []
