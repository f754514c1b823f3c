"""A form of the network that fails on a GPU, or answers wrongly, is not used; on a CPU that stands in for the GPU."""

import copy
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from stand_in_device import HostDevice
from test_gpu_backend import alike, beside_run, beside_task, run, task

from vsdiqp import tiles
from vsdiqp.backends import cuda, device, trial
from vsdiqp.backends.base import Network, Predictor
from vsdiqp.backends.cpu import TorchBackend
from vsdiqp.backends.device import multiprocessors
from vsdiqp.errors import BackendError, DiqpError
from vsdiqp.network import DiQP, load_checkpoint

CPU = torch.device("cpu")
TILE = (192, 128)


def rounded(network: DiQP, dtype: torch.dtype) -> DiQP:
    copied = copy.deepcopy(network)
    copied.to_precision(dtype)
    return copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", ["lite", "base"])
def test_rounding_is_no_objection(model: str, dtype: torch.dtype):
    network = load_checkpoint(model)
    assert trial.objection(network, rounded(network, dtype), CPU, dtype, TILE) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guides_are_tried_too(dtype: torch.dtype):
    network = task().network
    assert trial.objection(network, rounded(network, dtype), CPU, dtype, TILE) is None
    wrong = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in wrong.named_parameters():
            if name.startswith("look_around") and weight.dim() > 1:
                weight.neg_()
    assert trial.objection(network, wrong, CPU, torch.float32, TILE) is not None


class Spoilt:
    """A predictor that does something to what the network answers."""

    def __init__(self, network: Network, spoil: Callable[[torch.Tensor], torch.Tensor]):
        self._network, self._spoil = network, spoil
        self.frame_guides = network.frame_guides

    def predict(self, *arguments: torch.Tensor) -> torch.Tensor:
        return self._spoil(self._network.predict(*arguments).clone())


def one_window(x: torch.Tensor) -> torch.Tensor:
    x[..., 8:16, 16:24] = 0.02
    return x


WRONG = {
    "all zeros": torch.zeros_like,
    "NaN in one place": lambda x: x.index_fill_(-1, torch.tensor([5]), float("nan")),
    "one window": one_window,
    "frames in another order": lambda x: x.flip(2),
    "moved by a pixel": lambda x: x.roll(1, -1),
    "the second of two": lambda x: torch.cat([x[:1], x[1:].flip(2)]),
    "the first in place of the second": lambda x: x[:1].expand_as(x),
    "one alone": lambda x: x.flip(2) if len(x) == 1 else x,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_wrong_answers_are_seen(spoil: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype):
    network = load_checkpoint("lite")
    found = trial.objection(network, Spoilt(network, spoil), CPU, dtype, TILE)
    assert found is not None and "RMS" in found


def test_many_answers_alike_are_no_objection():
    network = load_checkpoint("lite")
    assert (
        trial.objection(network, network, CPU, torch.float32, TILE, batch=3, times=3, ways=(nullcontext,) * 2) is None
    )


ASKED: Iterator[int] = itertools.count()


def now_and_then(x: torch.Tensor) -> torch.Tensor:
    """Wrong every fifth time."""
    return x if next(ASKED) % 5 < 4 else x.roll(1, -1)


def where_programs_go_on(x: torch.Tensor) -> torch.Tensor:
    """Wrong where a program makes more than one piece of a map: with so small a tile, on a small GPU only."""
    return x if multiprocessors(torch.device("cuda", 0)) > 2 else x.roll(1, -1)


@pytest.mark.parametrize("spoil", [now_and_then, where_programs_go_on])
def test_what_one_answer_does_not_show_is_seen_when_a_form_is_opened(
    spoil: Callable[[torch.Tensor], torch.Tensor], gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    gpu.setattr(device, "_multiprocessors", lambda device: 132)
    form_that(gpu, lambda network: Spoilt(network, spoil))
    with caplog.at_level(logging.WARNING, "vsdiqp"):
        backend = cuda.open_backend(task())
    assert backend.describe().startswith("eager on") and "residuals are off" in caplog.text


@pytest.mark.parametrize("model", ["lite", "base"])
@pytest.mark.parametrize("side", [64, 128, 256, 448, 512, 576, 704])
def test_the_tile_that_is_tried_is_a_small_one_of_the_same_kind(side: int, model: str):
    """Of what Triton compiles apart: numbers that are multiples of 16, and those that are not, at every level."""
    config = load_checkpoint(model).config
    plan = tiles.plan(1920, 1080, (side, 512), 0, config.multiple, config.align)
    found = trial.tile_like(plan, config)
    for tried, wanted in zip(found, (side, 512), strict=True):
        assert tried <= wanted and tried < 384 and tried >= min(wanted, trial.SIDE) and tried % config.multiple == 0
        for level in range(config.levels + 1):
            scale = config.stem_scale * 2**level
            assert (tried // scale % 16 == 0) == (wanted // scale % 16 == 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One GPU of Hopper's capability, by its looks."""
    monkeypatch.delenv(cuda.FORM_VARIABLE, raising=False)
    monkeypatch.setattr(cuda, "cuda_devices", lambda indices: [HostDevice()])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name in ("batch", "times"):  # a GPU has time for more
        monkeypatch.setitem(cuda.TRIAL, name, cuda.TRIAL[name] // 2)
    return monkeypatch


def form_that(gpu: pytest.MonkeyPatch, spoil: Callable[[Network], Predictor]) -> None:
    """The fused form is made by ``spoil``."""
    plain = cuda.make_network

    def make(network: Network, form: str, dtype: torch.dtype, device: torch.device) -> Predictor:
        return spoil(network) if form == "fused" else plain(network, form, dtype, device)

    gpu.setattr(cuda, "make_network", make)


def breaks(network: Network) -> Predictor:
    raise RuntimeError("Failed to find C compiler")


FAULTS = {"it fails": breaks, "it answers wrongly": lambda network: Spoilt(network, torch.zeros_like)}


@pytest.mark.parametrize("spoil", FAULTS.values(), ids=FAULTS)
def test_the_plain_module_takes_its_place(
    spoil: Callable[[Network], Predictor], gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    form_that(gpu, spoil)
    the_task, ours, theirs = task(), run(), run()
    with caplog.at_level(logging.WARNING, "vsdiqp"):
        backend = cuda.open_backend(the_task)
    assert backend.describe().startswith("eager on")
    assert len(caplog.records) == 1 and "fused form" in caplog.text and "slower" in caplog.text
    backend.restore(ours)
    TorchBackend(task(), CPU, "fp32").restore(theirs)
    assert alike(ours.targets, theirs.targets, ours.frames) > 0.5


def test_too_little_memory_for_a_trial_is_no_verdict(gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    tried: list[str] = []
    plain = cuda.make_network

    def make(network: Network, form: str, dtype: torch.dtype, device: torch.device) -> Predictor:
        tried.append(form)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("stand-in")
        return plain(network, "eager", dtype, device)

    gpu.setattr(cuda, "make_network", make)
    with caplog.at_level(logging.WARNING, "vsdiqp"):
        backend = cuda.open_backend(task())
    assert backend.describe().startswith("fused on") and not caplog.records and set(tried) == {"fused"}


@pytest.mark.parametrize("spoil", FAULTS.values(), ids=FAULTS)
def test_a_form_that_was_asked_for_is_not_replaced(spoil: Callable[[Network], Predictor], gpu: pytest.MonkeyPatch):
    form_that(gpu, spoil)
    gpu.setenv(cuda.FORM_VARIABLE, "fused")
    with pytest.raises(BackendError, match="the fused form of the network can't be used"):
        cuda.open_backend(task())


def test_what_fails_in_every_form_leaves_the_gpu_to_others_and_says_what_came_first(gpu: pytest.MonkeyPatch):
    def make(network: Network, form: str, *_: object) -> Predictor:
        raise RuntimeError(f"CUDA error: an illegal memory access was encountered in {form}")

    gpu.setattr(cuda, "make_network", make)
    with pytest.raises(BackendError, match=r"illegal memory access .* in eager.* illegal memory access .* in fused"):
        cuda.open_backend(task())


def test_a_full_gpu_is_called_that(gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def full(self: HostDevice) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    gpu.setattr(HostDevice, "free_memory", full)
    form_that(gpu, lambda network: network)
    with caplog.at_level(logging.WARNING, "vsdiqp"), pytest.raises(DiqpError, match="too little free memory"):
        cuda.open_backend(task())
    assert not caplog.records


def test_a_form_that_answers_rightly_is_used(gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    form_that(gpu, lambda network: network)
    with caplog.at_level(logging.WARNING, "vsdiqp"):
        backend = cuda.open_backend(beside_task())
    assert backend.describe().startswith("fused on") and not caplog.records
    backend.restore(beside_run())
