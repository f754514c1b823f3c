"""Training on a GPU: a recorded step is the step that it was recorded from."""

import threading

import pytest
import torch
from networks import LITE_LIKE

pytest.importorskip("av", reason="needs PyAV")

from vsdiqp.network import DiQP
from vsdiqp.training import forms
from vsdiqp.training.batches import Batch, predict
from vsdiqp.training.forms import in_form


def batch(network: DiQP, seed: int) -> Batch:
    """Two samples of 64x64 of noise."""
    generator = torch.Generator().manual_seed(seed)
    config, count, side = network.config, 2, 64

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    location, _ = network.locate(37.0, "hevc", 4, 9, 0, 0, 1920, 1080, side, side)
    luma, chroma = random(count, 3, side, side), random(count, 2, 3, side // 2, side // 2) - 0.5
    return Batch(
        luma=luma, chroma=chroma, luma_true=luma, chroma_true=chroma, error=random(count, 3), typical=random(count),
        location=location.view(6, 1, 1).repeat(1, count, 1), decay=torch.ones(count, 1, 1, 1, 1),
        qp=torch.full((count,), 37.0), codec=["hevc"] * count, whole=None, ahead=None, matrix=[1] * count,
        beside=random(count, 3, config.seen, side, side),
    ).to(torch.device("cuda"))  # fmt: skip


@pytest.mark.gpu
def test_a_recorded_network_gives_the_results_and_gradients_of_the_plain_one() -> None:
    torch.manual_seed(0)
    config = LITE_LIKE
    plain, recorded = DiQP(config).cuda(), DiQP(config).cuda()
    recorded.load_state_dict(plain.state_dict())
    model = in_form(recorded, "graph", batch(recorded, 0), "fp32")
    for seed in (1, 2):
        one = batch(plain, seed)
        for network, called in ((plain, plain), (recorded, model)):
            network.zero_grad(set_to_none=True)
            tile, restored = predict(called, config, one)
            ((restored - tile) * 255).square().mean().backward()
        for (name, a), b in zip(plain.named_parameters(), recorded.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None, name
            assert torch.allclose(a.grad, b.grad, rtol=1e-2, atol=1e-3 * a.grad.abs().max().item()), name


def test_recordings_leave_other_threads_alone_whatever_torch_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, capture_error_mode: modes.append(capture_error_mode))
    with forms._others_going_on():
        torch.cuda.graph(None, capture_error_mode="global")  # as make_graphed_callables does from torch 2.14 on
    assert modes == ["thread_local"]


@pytest.mark.gpu
def test_recording_does_not_mind_batches_that_are_pinned_meanwhile() -> None:
    network = DiQP(LITE_LIKE).cuda()
    done = threading.Event()

    def pin() -> None:
        held = []  # so that torch has none to give again
        while not done.is_set() and len(held) < 2000:
            held.append(torch.empty(1 << 16).pin_memory())

    others = threading.Thread(target=pin)
    others.start()
    try:
        model = in_form(network, "graph", batch(network, 0), "fp32")
        predict(model, LITE_LIKE, batch(network, 1))
        torch.cuda.synchronize()
    finally:
        done.set()
        others.join()
