"""The compiled attention and feed-forward give what the torch modules say they are, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vsdiqp.network import attention, depthwise
from vsdiqp.network.lewin import SHIFT_PENALTY, FeedForward, LeWinBlock
from vsdiqp.network.native import PROCESSORS, by_processor


def pretend(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch had found a processor of this kind."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    for module, name in ((attention, "libattention"), (depthwise, "libdepthwise")):
        monkeypatch.setattr(module, "_compiled", module._compiled.of(by_processor(name)))


@pytest.fixture(params=PROCESSORS, autouse=True)
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every kind of processor that this one is, too: newer ones run what older ones would."""
    kinds = list(PROCESSORS)
    here = torch.backends.cpu.get_cpu_capability()
    if here not in kinds or kinds.index(request.param) < kinds.index(here):
        pytest.skip(f"needs a processor with {request.param}, and this one is {here}")
    pretend(request.param, monkeypatch)
    return str(request.param)


def with_gradients(
    module: nn.Module, step: Callable[[Tensor], Tensor], x: Tensor, bf16: bool
) -> list[tuple[str, Tensor]]:
    """The result, and the gradients of what went in and of every parameter."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = step(x)
    generator = torch.Generator().manual_seed(5)
    (y.float() * torch.randn(y.shape, generator=generator)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    gradients = [(name, p.grad.float()) for name, p in module.named_parameters() if p.grad is not None]
    return [("result", y.detach().float()), ("input", x.grad), *gradients]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("channels", "heads", "shift"), [(96, 4, 4), (96, 4, 0), (135, 3, 4), (80, 5, 4), (16, 1, 4)])
def test_attention_is_the_plain_one(
    channels: int, heads: int, shift: int, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    block = LeWinBlock(channels, heads, 8, 2, 1, shift, 1).train()
    nn.init.normal_(block.attn.bias_table)
    x = 2 * torch.randn(2, 24, 40, channels)
    assert attention.usable(x, 8)
    compiled = with_gradients(block.attn, block.attend, x, bf16)
    monkeypatch.setattr(attention, "usable", lambda *_: False)
    plain = with_gradients(block.attn, block.attend, x, bf16)
    assert [name for name, _ in compiled] == [name for name, _ in plain]
    for (name, new), (_, old) in zip(compiled, plain, strict=True):
        assert distance(new, old) < (6e-3 if bf16 else 2e-6), name


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("channels", "ratio", "height", "width"), [(96, 3, 24, 40), (48, 3, 33, 20), (16, 2, 1, 3)])
def test_feed_forward_is_no_farther_from_exact_than_the_plain_one(
    channels: int, ratio: int, height: int, width: int, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    feed = FeedForward(channels, ratio, 1, 1).train()
    x = 2 * torch.randn(3, height, width, channels)
    used: list[bool] = []
    usable = depthwise.usable

    def watched(x: Tensor, groups: int) -> bool:
        used.append(usable(x, groups))
        return used[-1]

    monkeypatch.setattr(depthwise, "usable", watched)
    compiled = with_gradients(feed, feed, x, bf16)
    assert used == [True]
    monkeypatch.setattr(depthwise, "usable", lambda *_: False)
    plain = with_gradients(feed, feed, x, bf16)
    exact = with_gradients(feed.double(), feed, x.double(), False)
    for (name, new), (_, old), (_, true) in zip(compiled, plain, exact, strict=True):
        assert distance(new, true) < max(1.3 * distance(old, true), 3e-3 if bf16 else 2e-6), name


def test_threads_and_batches_change_no_bit() -> None:
    torch.manual_seed(0)
    q, kv, bias = torch.randn(3, 16, 24, 32), torch.randn(3, 16, 24, 64), torch.randn(2, 64, 64)
    hidden, weight, offset = torch.randn(3, 40, 20, 80).bfloat16(), torch.randn(80, 1, 3, 3), torch.randn(80)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 64):
            torch.set_num_threads(threads)
            for items in (slice(None), slice(0, 1)):
                attended = attention.window_attention(q[items], kv[items], bias, 4, SHIFT_PENALTY)
                activated = depthwise.activated(hidden[items], weight, offset)
                exact = depthwise.activated(hidden[items].float(), weight, offset)
                results.append((attended[:1], activated[:1], exact[:1]))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, first) for one, first in zip(others, results[0], strict=True))


def test_large_scores_stay_finite() -> None:
    q = torch.full((1, 8, 8, 16), 60.0)
    q[:, 4:] *= -1
    kv = torch.cat([q, torch.randn(1, 8, 8, 16)], -1)
    y = attention.window_attention(q, kv, torch.zeros(1, 64, 64), 0, SHIFT_PENALTY)
    expected = torch.cat([kv[:, :4, :, 16:].mean((1, 2)), kv[:, 4:, :, 16:].mean((1, 2))])
    torch.testing.assert_close(y[:, [0, 7], 0][0], expected, rtol=1e-5, atol=1e-6)


def test_what_is_no_number_stays_none() -> None:
    """The filter changes nothing where a network's answer is none."""
    q, kv = torch.randn(1, 8, 16, 16), torch.randn(1, 8, 16, 32)
    q[0, 3, 3, 5], kv[0, 2, 9, 3] = torch.nan, torch.nan
    y = attention.window_attention(q, kv, torch.zeros(1, 64, 64), 0, SHIFT_PENALTY)
    assert y[0, 3, 3].isnan().all() and y[0, :, 8:].isnan().all()
    assert not y[0, :3, :8].isnan().any()
    hidden = torch.randn(1, 8, 8, 16)
    hidden[0, 4, 4, 2] = torch.nan
    for precision in (torch.float32, torch.bfloat16):
        y = depthwise.activated(hidden.to(precision), torch.ones(16, 1, 3, 3), torch.zeros(16))
        assert y[0, 3:6, 3:6, 2].isnan().all() and y.isnan().sum() == 9


def test_precisions_that_have_no_compiled_way_take_the_plain_one() -> None:
    block = LeWinBlock(32, 2, 8, 2, 1, 4, 1).eval()
    x = torch.randn(1, 16, 16, 32)
    with torch.no_grad():
        expected = block(x)
        with torch.autocast("cpu", torch.float16):
            assert not attention.usable(x, 8)
            assert distance(block(x).float(), expected) < 1e-2
    with pytest.raises(ValueError, match="sizes do not fit"):
        attention.window_attention(x.half(), torch.cat([x, x], -1).half(), torch.zeros(2, 64, 64), 0, SHIFT_PENALTY)
    with pytest.raises(ValueError, match="sizes do not fit"):
        depthwise.activated(x.half(), torch.ones(32, 1, 3, 3), torch.zeros(32))


def test_other_processors_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("DEFAULT", monkeypatch)
    x = torch.randn(1, 16, 16, 32)
    assert not attention.usable(x, 8) and not depthwise.usable(x, 32)


def test_sizes_that_do_not_fit_are_refused() -> None:
    q, kv = torch.zeros(1, 16, 16, 32), torch.zeros(1, 16, 16, 64)
    with pytest.raises(ValueError, match="sizes do not fit"):
        attention.window_attention(q, kv, torch.zeros(3, 64, 64), 0, SHIFT_PENALTY)
    with pytest.raises(ValueError, match="sizes do not fit"):
        attention.window_attention(q[:, :12], kv[:, :12], torch.zeros(2, 64, 64), 0, SHIFT_PENALTY)
    with pytest.raises(ValueError, match="sizes do not fit"):
        attention.window_attention(q, kv.bfloat16(), torch.zeros(2, 64, 64), 0, SHIFT_PENALTY)
