"""The GPU backend's whole way of a run, on a CPU that stands in for the GPU, against the CPU backend."""

import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from moving import moving_frame
from networks import LITE_LIKE
from stand_in_device import HostDevice

from vsdiqp import tiles
from vsdiqp.backends import cuda, memory
from vsdiqp.backends.base import Task
from vsdiqp.backends.cpu import TorchBackend
from vsdiqp.backends.cuda import GpuBackend
from vsdiqp.backends.memory import Size
from vsdiqp.clip import ClipFormat, FrameColour, Planes, Run
from vsdiqp.errors import DiqpError
from vsdiqp.kernels import layouts
from vsdiqp.network import DiQP, DiQPConfig

Targets = Sequence[Planes | None]

CLIP = ClipFormat("YUV", "integer", 10, 1, 1, 80, 48, 12)
COLOUR = FrameColour(1, False, 0)
RELEASED_LIKE = DiQPConfig(
    name="tiny", embed_dim=4, depths=(1, 1, 1), heads=(1, 1, 1), look_around=(3,), look_ahead=(4,), tile=32, overlap=8
)

BESIDE_CLIP = ClipFormat("YUV", "integer", 10, 1, 1, 136, 88, 12)
BESIDE = replace(LITE_LIKE, neighbours=2, tile=96, overlap=16)


def network(config: DiQPConfig = RELEASED_LIKE) -> DiQP:
    torch.manual_seed(5)
    made = DiQP(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.08)
    return made.prepare()


def task(**changes) -> Task:
    plan = tiles.plan(CLIP.width, CLIP.height, (32, 32), 8, 16, 8)
    return replace(Task(network(), CLIP, plan, 0.9, "fp32"), **changes)


def frame(seed: int) -> Planes:
    random = np.random.default_rng(seed)
    return tuple(random.integers(64, 940, shape).astype(np.uint16) for shape in ((48, 80), (24, 40), (24, 40)))


def run(seed: int = 0, wanted=(True, True, True), middle: int = 4) -> Run:
    frames = [frame(seed + i) for i in range(4)]
    targets = tuple(tuple(np.zeros_like(p) for p in f) if w else None for f, w in zip(frames, wanted, strict=False))
    return Run(tuple(frames[:3]), frames[3], targets, COLOUR, 37.0, "hevc", middle)


def beside_task(clip: ClipFormat = BESIDE_CLIP, **changes) -> Task:
    plan = tiles.plan(clip.width, clip.height, (96, 96), 16, BESIDE.multiple, BESIDE.align)
    return replace(Task(network(BESIDE), clip, plan, 0.9, "fp32"), **changes)


def beside_run(numbers=(0, 1, 2, 3, 4, 5, 6), wanted=(True, True, True), clip: ClipFormat = BESIDE_CLIP) -> Run:
    """Frames with these numbers: two before the group, the group, two after; equal numbers are the same frame."""
    frames = {number: moving_frame(clip, number) for number in set(numbers)}
    sequence = [frames[number] for number in numbers]
    targets = (tuple(np.zeros_like(p) for p in f) if w else None for f, w in zip(sequence[2:5], wanted, strict=True))
    around = {"before": tuple(sequence[:2]), "after": tuple(sequence[5:])}
    meaning = FrameColour(0, True, 0) if clip.family == "RGB" else COLOUR
    return Run(tuple(sequence[2:5]), sequence[4], tuple(targets), meaning, 37.0, "hevc", 4, **around)


def open_on(devices: list[HostDevice], the_task: Task, build=None) -> GpuBackend:
    def predictor(copied, device, size):
        if build is not None:
            build(device, size)
        return cuda.make_network(copied, "eager", torch.float32, device.torch)

    return GpuBackend(the_task, devices, "fp32", "eager", predictor, record=True)


def alike(ours: Targets, theirs: Targets, others: Targets) -> float:
    """The sum over planes of the share of samples that differ from ``others``; ours and theirs must be alike."""
    different = 0.0
    for a, b, c in zip(ours, theirs, others, strict=True):
        assert (a is None) == (b is None)
        for x, y, other in zip(a or (), b or (), c or (), strict=False):
            assert np.abs(x.astype(int) - y.astype(int)).max() <= 1
            assert (x != y).mean() < 5e-3, "one code value, and that only near ties"
            different += (x != other).mean()
    return different


def test_a_run_equals_the_cpu_backend():
    ours, theirs = run(), run()
    backend = open_on([HostDevice()], task())
    backend.restore(ours)
    TorchBackend(task(), torch.device("cpu"), "fp32").restore(theirs)
    assert alike(ours.targets, theirs.targets, ours.frames) > 0.5, "the network must do something to say something"


PLAIN = replace(BESIDE_CLIP, subsampling_w=0, subsampling_h=0)
RUNS = {
    "seven frames": (range(7), (True, True, True)),
    "the clip begins": ((0, 0, 0, 1, 2, 3, 4), (True, True, True)),
    "a cut before the last frame": ((0, 1, 2, 3, 3, 3, 3), (True, True, False)),
    "only the middle frame is restored": (range(7), (False, True, False)),
    "RGB, whose luma is made of all planes": (range(7), (True, True, True), replace(PLAIN, family="RGB")),
    "grey": (range(7), (True, True, True), replace(PLAIN, family="GRAY")),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_neighbours_equals_the_cpu_backend(name: str):
    ours, theirs = beside_run(*RUNS[name]), beside_run(*RUNS[name])
    clip = RUNS[name][2] if len(RUNS[name]) > 2 else BESIDE_CLIP
    open_on([HostDevice()], beside_task(clip, batch=2)).restore(ours)
    TorchBackend(beside_task(clip), torch.device("cpu"), "fp32").restore(theirs)
    assert alike(ours.targets, theirs.targets, ours.frames) > 0.5, "the network must do something to say something"


FIRST_RUNS = {
    "a first pass": RUNS["seven frames"],
    "a first pass, the clip begins": RUNS["the clip begins"],
    "a first pass of RGB": RUNS["RGB, whose luma is made of all planes"],
}


@pytest.mark.parametrize("name", FIRST_RUNS)
def test_a_run_with_a_first_pass_equals_the_cpu_backend(name: str):
    numbers, wanted, *other = FIRST_RUNS[name]
    clip = other[0] if other else BESIDE_CLIP
    config = replace(BESIDE, first_pass="lite")
    made = {number: moving_frame(clip, number + 20) for number in set(numbers)}

    def passed() -> Run:
        return replace(beside_run(numbers, wanted, clip), first=tuple(made[number] for number in numbers))

    ours, theirs, without = passed(), passed(), beside_run(numbers, wanted, clip)
    open_on([HostDevice()], replace(beside_task(clip, batch=2), network=network(config))).restore(ours)
    TorchBackend(replace(beside_task(clip), network=network(config)), torch.device("cpu"), "fp32").restore(theirs)
    TorchBackend(beside_task(clip), torch.device("cpu"), "fp32").restore(without)
    matters = alike(ours.targets, theirs.targets, without.targets)
    assert matters > 0.1, "what the first pass made must be looked at for this to say something"


def test_neighbours_matter_and_nothing_is_left_of_the_run_before():
    backend = open_on([HostDevice()], beside_task())
    first, still, again = beside_run(), beside_run((2, 2, 2, 3, 4, 4, 4)), beside_run()
    for one in (first, still, again):
        backend.restore(one)
    assert (first.targets[0][0] != still.targets[0][0]).any(), "the same group with other neighbours"
    for a, b in zip(first.targets, again.targets, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_only_luma_of_neighbours_is_looked_at_and_staged():
    backend = open_on([HostDevice()], beside_task())
    whole, bare = beside_run(), beside_run()
    bare = replace(bare, before=tuple(f[:1] for f in bare.before), after=tuple(f[:1] for f in bare.after))
    backend.restore(whole)
    backend.restore(bare)
    for a, b in zip(whole.targets, bare.targets, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_only_what_a_run_needs_travels():
    backend = open_on([HostDevice()], beside_task())
    backend.restore(beside_run(wanted=(False, True, False)))
    slot = backend._slots[0]
    staged = layouts.StagedFrame.of(BESIDE_CLIP)
    there, back = (memory.reshape(-1, staged.nbytes) for memory in (slot._mirror.numpy(), slot._staging.array))
    luma = staged.pitches[0] * BESIDE_CLIP.height * staged.itemsize
    for place in range(7):
        assert there[place, :luma].any()
        assert there[place, luma:].any() == (2 <= place < 5), "colours of the group alone"
    results = back[-3:]
    assert [(frame != 0xAB).any() for frame in results] == [False, True, False]


def test_what_a_slot_holds_for_itself_does_not_grow_with_the_batch():
    one, two = (open_on([HostDevice()], beside_task(batch=batch))._slots[0] for batch in (1, 2))
    assert one.fixed_bytes == two.fixed_bytes > one._staging.array.nbytes, "the mirror of staging is counted"


def test_launches_of_a_run_with_neighbours():
    device = HostDevice()
    backend = open_on([device], beside_task(batch=1))
    prepared = ["read_luma", "search_planes", *["halve_planes"] * 3, *["between_planes"] * 2, *["search_blocks"] * 4]
    batches = ["prepare_tiles", "move_luma"] * beside_task().plan.count
    device.launched.clear()
    backend.restore(beside_run())
    assert device.launched == [*prepared, *batches, "finish_planes"]
    device.launched.clear()
    backend.restore(beside_run((1,) * 7))
    assert device.launched == ["read_luma", *batches, "finish_planes"], "nothing moves in a frame that is repeated"


def test_a_run_without_its_neighbours_is_refused():
    backend = open_on([HostDevice()], beside_task())
    with pytest.raises(DiqpError, match="1 and 2 frames around its group; this network needs 2"):
        backend.restore(replace(beside_run(), before=beside_run().before[:1]))


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_pixels_do_not_depend_on_slots_or_what_ran_before(batch: int):
    backend = open_on([HostDevice("one"), HostDevice("two")], task(batch=batch))
    assert backend.concurrency == 4
    first = run()
    backend.restore(first)
    for seed in (3, 9, 0, 0):
        again = run(seed)
        backend.restore(again)
    for a, b in zip(first.targets, again.targets, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_runs_in_flight_do_not_meet():
    backend = open_on([HostDevice()], task(batch=2))
    alone = [run(seed) for seed in range(4)]
    for one in alone:
        backend.restore(one)
    together = [run(seed) for seed in range(4)]
    threads = [threading.Thread(target=backend.restore, args=(one,)) for one in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        for x, y in zip(a.targets, b.targets, strict=True):
            assert all(np.array_equal(p, q) for p, q in zip(x, y, strict=True))


def test_only_wanted_frames_are_written_and_repeated_frames_are_staged_once():
    backend = open_on([HostDevice()], task())
    partial, whole = run(wanted=(False, True, False)), run()
    backend.restore(partial)
    backend.restore(whole)
    assert all(np.array_equal(x, y) for x, y in zip(partial.targets[1], whole.targets[1], strict=True))
    still = replace(run(), ahead=run().frames[0])
    repeated = replace(still, frames=(still.frames[0],) * 3, ahead=still.frames[0])
    backend.restore(repeated)


def test_launches_of_a_run():
    device = HostDevice()
    backend = open_on([device], task(batch=4))
    device.launched.clear()
    backend.restore(run())
    batches = -(-task().plan.count // 4)
    assert device.launched == ["thumbnails", *["prepare_tiles"] * batches, "finish_planes"]


def test_a_failed_run_leaves_the_backend_usable():
    backend = open_on([HostDevice()], task())
    with pytest.raises(DiqpError, match="_Matrix is 14"):
        backend.restore(replace(run(), colour=FrameColour(14, False, 0)))
    good = run()
    backend.restore(good)
    assert (good.targets[0][0] != 0).any()


RAN_OUT = [
    torch.OutOfMemoryError("stand-in"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cudaErrorMemoryAllocation: out of memory"),
    RuntimeError("Unable to create TensorRT execution context"),
]
"""As torch, the driver, Triton, cuBLAS, CuPy and torch-tensorrt say it."""


@pytest.mark.parametrize("error", RAN_OUT, ids=str)
def test_too_little_memory_takes_smaller_batches_then_smaller_tiles(error: Exception):
    seen: list[tuple[int, int]] = []

    def build(device, size: Size):
        seen.append((size.batch, size.plan.columns.side * size.plan.rows.side))
        if size.batch > 1 or size.plan.columns.side * size.plan.rows.side > 32 * 16:
            raise error

    device = HostDevice()
    backend = open_on([device], task(batch=4), build)
    assert device.trimmed >= 2, "what was in vain is given back first"
    assert seen == [(3, 1024), (1, 1024), (1, 512)]
    assert "batches of 1" in backend.describe()
    restored = run()
    backend.restore(restored)
    assert (restored.targets[0][0] != restored.frames[0][0]).any()


def test_memory_that_holds_nothing_is_an_error_that_says_what_to_set():
    def build(device, size):
        raise torch.OutOfMemoryError("stand-in")

    with pytest.raises(DiqpError, match=r"device=|backend='cpu'"):
        open_on([HostDevice()], task(batch=2), build)


def test_other_errors_are_not_taken_for_a_want_of_memory():
    def build(device, size):
        raise RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448")

    with pytest.raises(RuntimeError, match="out of resource"):
        open_on([HostDevice()], task(batch=4), build)


@pytest.mark.parametrize("record", [True, False])
def test_nothing_of_a_slot_outlives_it(record: bool):
    """Not even until the collector comes, which knows nothing of a GPU's memory; closed, or too large for it."""
    made: list[weakref.ref] = []

    class Large:
        """Has no room for what its fourth run needs: in the second slot, with the first one ready."""

        def __init__(self, network, batch: int):
            self.network, self.batch, self.runs, self.frame_guides = network, batch, 0, network.frame_guides

        def predict(self, *arguments):
            self.runs += 1
            if self.batch > 1 and self.runs == 4:
                raise torch.OutOfMemoryError("stand-in")
            return self.network.predict(*arguments)

    def predictor(copied, device, size):
        assert all(earlier() is None for earlier in made), "what did not fit is gone before less is tried"
        large = Large(cuda.make_network(copied, "eager", torch.float32, device.torch), size.batch)
        made.append(weakref.ref(large))
        return large

    gc.collect()
    gc.disable()
    try:
        backend = GpuBackend(task(batch=3), [HostDevice()], "fp32", "test", predictor, record=record)
        assert len(made) == 2
        backend.close()
        del backend
        assert made[-1]() is None
    finally:
        gc.enable()


def test_memory_that_runs_out_later_is_an_error_that_says_what_to_set():
    backend = open_on([HostDevice()], task(batch=2))

    def fail() -> None:
        raise torch.OutOfMemoryError("stand-in")

    for slot in backend._slots:
        slot._predict = fail
    with pytest.raises(DiqpError, match="set batch= below 2"):
        backend.restore(run())


def test_batches_follow_free_memory():
    tile = 1 << 30
    assert memory.batch_for(100 << 30, 0, tile, 2, 135) == memory.LARGEST_BATCH
    assert memory.batch_for(6 << 30, 0, tile, 2, 135) == 2
    assert memory.batch_for(16 << 30, 4 << 30, tile, 2, 135) == 2, "what a slot holds for itself is held once"
    assert memory.batch_for(1 << 20, 0, tile, 2, 135) == 1, "one tile is tried in any case"
    assert memory.batch_for(100 << 30, 0, tile, 2, 9) == 5, "two batches of five, not one of eight and one of one"
    free = open_on([HostDevice(free=6 << 30)], task())
    assert "batches of 2" in free.describe()


def test_forms_of_the_network():
    assert cuda.network_form("eager", (9, 0)) == "eager"
    assert cuda.network_form(None, (7, 5)) == "eager", "Triton has no tensor cores there"
    with pytest.raises(DiqpError, match="VSDIQP_CUDA_NETWORK is 'fast'"):
        cuda.network_form("fast", (9, 0))


def test_without_a_gpu_the_backend_says_why():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "GPU" in (cuda.unavailable() or "") or "CUDA" in (cuda.unavailable() or "")
