"""The steps between the stages of a U against torch, to the bit: on a GPU where there is one, else interpreted."""

import dataclasses

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton, which CUDA builds of torch bring")

from vsdiqp.backends import fused_joins
from vsdiqp.network.joins import Beside, joined
from vsdiqp.network.packing import FrameUpsample, PackedConv, PackedUpsample, to_children

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, HEIGHT, WIDTH = 2, 6, 10


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def beside(guides: list[tuple[int, int]], zeros: int, each: int, dtype: torch.dtype) -> Beside:
    """Guides of these batches and channels."""
    maps = [drawn(b, HEIGHT, WIDTH, c, seed=7 + c, dtype=dtype) for b, c in guides]
    return Beside(maps, zeros, drawn(each, 4, 4, 3, seed=3, dtype=dtype))


CASES = {
    "pattern alone": ([], 0, BATCH),
    "one pattern for all": ([], 0, 1),
    "a guide of every image": ([(BATCH, 7)], 2, BATCH),
    "a guide for all": ([(1, 14)], 0, BATCH),
    "two guides": ([(BATCH, 5), (1, 6)], 1, BATCH),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_tokens_with_what_stands_behind_them(case: str, side: int, dtype: torch.dtype) -> None:
    guides, zeros, each = CASES[case]
    behind = beside(guides, zeros, each, dtype)
    x = drawn(BATCH, HEIGHT, WIDTH, 15, dtype=dtype)
    plain = joined(x, behind)
    channels = plain.shape[-1]
    ours = fused_joins.join(x, behind, 48, side)
    assert ours.shape == (BATCH, HEIGHT // side, WIDTH // side, side * side * 48)
    if side == 2:
        ours = to_children(ours)
    assert torch.equal(ours[..., :channels], plain) and not ours[..., channels:].any()
    wide = fused_joins.widened(x, 32)[..., :15]  # as a stage leaves it: rows farther apart than they are long
    assert torch.equal(fused_joins.join(wide, behind, 48, side), fused_joins.join(x, behind, 48, side))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("wide", [None, 32])
@pytest.mark.parametrize("concat", [True, False])
def test_what_a_stage_on_the_way_back_reads(concat: bool, wide: int | None, dtype: torch.dtype) -> None:
    outputs, skipped = 11, 13 if concat else 11
    children = drawn(BATCH, HEIGHT // 2, WIDTH // 2, 4, 16, dtype=dtype)
    skip = fused_joins.widened(drawn(BATCH, HEIGHT, WIDTH, skipped, seed=1, dtype=dtype), 16)[..., :skipped]
    below = to_children(children[..., :outputs].flatten(3))
    plain = torch.cat([below, skip], -1) if concat else below + skip
    ours, sums = fused_joins.enter(children.flatten(3), outputs, skip, concat, wide)
    channels = plain.shape[-1]
    assert torch.equal(ours[..., :channels], plain) and not ours[..., channels:].any()
    if wide is None:
        assert ours.shape == plain.shape and not sums.numel()
        return
    values = plain.double().flatten(0, 2)
    expected = torch.stack([values.sum(1), values.square().sum(1)], -1)[None]
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)


def test_projections_over_padded_channels_are_the_plain_ones() -> None:
    torch.manual_seed(0)
    joins = fused_joins.FusedJoins(concat=False)
    x, skip = drawn(BATCH, HEIGHT, WIDTH, 22), drawn(BATCH, 2 * HEIGHT, 2 * WIDTH, 9, seed=2)
    behind = dataclasses.replace(beside([], 0, BATCH, torch.float32), zeros=1)

    def equal(ours: Tensor, plain: Tensor) -> None:
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)

    with torch.no_grad():
        patches = PackedConv(24, 9, (1, 2, 2), stride=2, padding=0, frames=1).to(DEVICE)
        ours: torch.nn.Module = fused_joins.PaddedPatches(patches, torch.float32)
        equal(joins.down(ours, x, behind), patches(joined(x, behind)))
        wide = PackedConv(8, 3, (3, 4, 4), stride=2, padding=1).to(DEVICE)
        for whole in (False, True):
            ours = fused_joins.PaddedConv(wide, torch.float32, whole)
            plain = wide(joined(x, behind))
            equal(joins.down(ours, x, behind), fused_joins.widened(plain, 16) if whole else plain)
        for up in (FrameUpsample(24, 9).to(DEVICE), PackedUpsample(8, 3).to(DEVICE)):
            ours = fused_joins.PaddedUpsample(up, torch.float32)
            equal(joins.up(ours, torch.nn.Identity(), x, skip, behind), up(joined(x, behind)) + skip)


def test_what_does_not_fit_is_refused() -> None:
    x, behind = drawn(BATCH, HEIGHT, WIDTH, 15), beside([(1, 3)], 0, 1, torch.float32)
    with pytest.raises(ValueError, match=r"guides of \[3, 0, 0\] channels does not fit 16"):
        fused_joins.join(x, behind, 16)
    with pytest.raises(ValueError, match="do not fit"):
        fused_joins.enter(drawn(BATCH, HEIGHT, WIDTH, 64), 15, x, True, 32)
