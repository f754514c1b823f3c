"""What training minimises, and that training sees chroma as the filter does."""

import dataclasses

import numpy as np
import pytest
import torch
from material import moving_clip
from torch import Tensor

from vsdiqp.clip import ClipFormat, FrameColour
from vsdiqp.network import DiQPConfig
from vsdiqp.planes import FrameMap
from vsdiqp.training.batches import Batch, full_size, normalised, sited, to_colour, unsited
from vsdiqp.training.loss import (
    charbonnier,
    consistency_loss,
    imitation_loss,
    luma_gain,
    planes_error,
    training_loss,
)
from vsdiqp.training.settings import load_settings

LITE = load_settings("lite", {"pool": "none"}).network
PIXELS = dataclasses.replace(LITE, stem_scale=1, stem_blocks=0, head_blocks=0, neighbours=0, joint=True)
RGB = DiQPConfig()
HEIGHT, WIDTH = 48, 64
FLOAT = ClipFormat("YUV", "float", 32, 1, 1, WIDTH, HEIGHT, 3)
COLOUR = FrameColour(1, False, 0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def make_batch(size: int = 2, noise: float = 0.02, seed: int = 0) -> Batch:
    """Noise on random pictures; frames as the batches of a pool have them."""
    luma_true = 0.2 + 0.6 * random(size, 3, HEIGHT, WIDTH, seed=seed)
    chroma_true = 0.2 * (random(size, 2, 3, HEIGHT // 2, WIDTH // 2, seed=seed + 1) - 0.5)
    luma = luma_true + noise * (random(*luma_true.shape, seed=seed + 2) - 0.5)
    chroma = chroma_true + noise * (random(*chroma_true.shape, seed=seed + 3) - 0.5)
    errors = [(luma - luma_true).square().mean((2, 3))[:, None], (chroma - chroma_true).square().mean((3, 4))]
    return Batch(
        luma=luma,
        chroma=chroma,
        luma_true=luma_true,
        chroma_true=chroma_true,
        error=torch.cat(errors, 1),
        typical=torch.full((size,), 0.012**2),
        location=torch.zeros(6, size, 1),
        decay=torch.ones(size, 1, 1, 1, 1),
        qp=torch.full((size,), 37.0),
        codec=["hevc"] * size,
        whole=None,
        ahead=None,
        matrix=[1, 6] * (size // 2) + [1] * (size % 2),
    )


def loss(batch: Batch, residual: Tensor | float, config: DiQPConfig, kind: str) -> float:
    tile = to_colour(batch.luma, batch.chroma, config, batch.matrix)
    return training_loss(tile, tile + residual, batch, config, kind, 0.1).item()


# -- chroma ------------------------------------------------------------------------------------------------------------


def read(chroma: Tensor) -> Tensor:
    """What the filter's planes make of 2, h/2, w/2 of chroma: 2, h, w."""
    out = torch.empty(3, HEIGHT, WIDTH)
    planes = (np.zeros((HEIGHT, WIDTH), np.float32), chroma[0].numpy(), chroma[1].numpy())
    FrameMap(FLOAT, COLOUR, "ycbcr").read(planes, 0, 0, out)
    return out[1:] - 0.5


def test_cells_see_the_mean_of_the_filters_chroma() -> None:
    chroma = random(2, HEIGHT // 2, WIDTH // 2) - 0.5
    expected = torch.nn.functional.avg_pool2d(read(chroma), 2)
    torch.testing.assert_close(sited(chroma), expected, rtol=0, atol=1e-6)
    seen = torch.nn.functional.avg_pool2d(full_size(chroma, half_resolution=True), 2)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)


def test_pixels_see_the_filters_chroma() -> None:
    chroma = random(2, HEIGHT // 2, WIDTH // 2) - 0.5
    torch.testing.assert_close(full_size(chroma, half_resolution=False), read(chroma), rtol=0, atol=1e-6)


@pytest.mark.parametrize("constant_over_cells", [True, False])
def test_a_residual_goes_back_as_in_the_filter(constant_over_cells: bool) -> None:
    residual = 0.1 * (random(2, HEIGHT, WIDTH) - 0.5)
    if constant_over_cells:
        residual = residual[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    planes = tuple(np.zeros((HEIGHT // s, WIDTH // s), np.float32) for s in (1, 2, 2))
    targets = tuple(np.empty_like(p) for p in planes)
    full = torch.cat([torch.zeros(1, HEIGHT, WIDTH), residual])
    FrameMap(FLOAT, COLOUR, "ycbcr").add(planes, targets, full, 0, 0, HEIGHT)
    expected = torch.from_numpy(np.stack(targets[1:]))
    # Only the frame's outermost columns differ, which crops of a larger picture don't have.
    inner = slice(1, -1)
    torch.testing.assert_close(unsited(residual)[..., inner], expected[..., inner], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize(("config", "matrix"), [(PIXELS, 1), (RGB, 1), (RGB, 6)])
def test_pool_samples_become_what_the_filter_reads(config: DiQPConfig, matrix: int, bits: int) -> None:
    clip = moving_clip(3, 64, bits)
    luma = normalised(clip.y, bits, chroma=False)[None]
    chroma = normalised(clip.c, bits, chroma=True)[None]
    tile = to_colour(luma, chroma, config, [matrix])[0]
    frames = FrameMap(ClipFormat("YUV", "integer", bits, 1, 1, 64, 64, 3), FrameColour(matrix, False, 0), config.colour)
    for n in range(3):
        expected = torch.empty(3, 64, 64)
        frames.read((clip.y[n], clip.c[0, n], clip.c[1, n]), 0, 0, expected)
        torch.testing.assert_close(tile[:, n], expected, rtol=0, atol=2e-6)


# -- losses ------------------------------------------------------------------------------------------------------------


def perfect(batch: Batch, config: DiQPConfig) -> Tensor:
    """The residual that makes luma perfect, in the network's colours."""
    if config.colour == "rgb":
        given = to_colour(batch.luma, batch.chroma, config, batch.matrix)
        return to_colour(batch.luma_true, batch.chroma_true, config, batch.matrix) - given
    missing = torch.zeros(len(batch.qp), 3, 3, HEIGHT, WIDTH)
    missing[:, 0] = batch.luma_true - batch.luma
    return missing


@pytest.mark.parametrize("kind", ["charbonnier", "relative"])
@pytest.mark.parametrize("config", [LITE, PIXELS, RGB])
def test_the_truth_has_the_least_loss(kind: str, config: DiQPConfig) -> None:
    batch = make_batch()
    batch.chroma = batch.chroma_true  # luma alone is damaged, so that the truth is within reach
    best = perfect(batch, config)
    losses = [loss(batch, best * share, config, kind) for share in (0, 0.5, 0.9, 1, 1.1, 2)]
    assert losses[3] == min(losses) and losses[:4] == sorted(losses[:4], reverse=True) and losses[5] > losses[4]
    assert losses[3] == pytest.approx(0 if kind == "relative" else 1e-3 * (1.2 if config.colour == "ycbcr" else 1))


def test_chroma_can_be_made_perfect_too() -> None:
    """The gradient on a chroma residual points to the truth through the filter's way back."""
    batch = make_batch()
    tile = to_colour(batch.luma, batch.chroma, LITE, batch.matrix)
    residual = torch.zeros_like(tile, requires_grad=True)
    for _ in range(150):
        _, error = planes_error(tile, tile + residual, batch)
        (gradient,) = torch.autograd.grad(error.square().sum(), residual)
        residual = (residual - gradient).detach().requires_grad_()
    _, before = planes_error(tile, tile, batch)
    _, after = planes_error(tile, tile + residual, batch)
    assert after.square().mean() < 1e-3 * before.square().mean()


def test_relative_loss_of_doing_nothing() -> None:
    """One, but for the floor: a frame's error is measured by itself."""
    batch = make_batch()
    batch.chroma = batch.chroma_true
    share = batch.error[:, 0] / (batch.error[:, 0] + 0.1 * batch.typical[:, None])
    assert loss(batch, 0.0, LITE, "relative") == pytest.approx(share.mean().item(), rel=1e-5)


def test_relative_loss_does_not_ask_how_strong_the_damage_is() -> None:
    """Damage twice as strong, where the QP lets expect it, and half of it removed: the same loss."""
    weak, strong = make_batch(noise=0.02), make_batch(noise=0.04)
    strong.typical = 4 * weak.typical
    losses = []
    for batch in (weak, strong):
        batch.chroma = batch.chroma_true
        losses.append(loss(batch, perfect(batch, LITE) / 2, LITE, "relative"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_frames_that_are_nearly_perfect_count_little() -> None:
    batch = make_batch(noise=1e-4)
    assert loss(batch, 0.0, LITE, "relative") < 0.01


def test_charbonnier() -> None:
    assert charbonnier(torch.zeros(4)).item() == pytest.approx(1e-3)
    assert charbonnier(torch.tensor([3.0, -4.0])).item() == pytest.approx(3.5, rel=1e-5)


@pytest.mark.parametrize("config", [LITE, RGB])
def test_gain_in_decibels(config: DiQPConfig) -> None:
    batch = make_batch()
    batch.chroma = batch.chroma_true
    tile = to_colour(batch.luma, batch.chroma, config, batch.matrix)
    half = perfect(batch, config) / 2
    gain = luma_gain(tile, tile + half, batch, config)
    assert gain.shape == (2, 3)
    torch.testing.assert_close(gain, torch.full((2, 3), 6.0206), rtol=0, atol=0.02)
    assert not luma_gain(tile, tile, batch, config).any()


def test_imitation() -> None:
    """Zero for the teacher's own answer, and in units of the damage that the QP lets expect."""
    batch = make_batch()
    batch.taught = 0.01 * random(2, HEIGHT, WIDTH)
    batch.taught_frame = torch.tensor([0, 2])
    tile = to_colour(batch.luma, batch.chroma, LITE, batch.matrix)
    restored = tile.clone()
    nothing = imitation_loss(tile, restored, batch).item()
    restored[0, 0, 0] += batch.taught[0]
    restored[1, 0, 2] += batch.taught[1]
    assert imitation_loss(tile, restored, batch).item() == pytest.approx(0, abs=1e-9)
    assert nothing == pytest.approx(10 * (batch.taught.square().mean() / 0.012**2).item(), rel=1e-3)


def test_relative_loss_counts_chroma_by_its_own_damage() -> None:
    """Chroma is mostly damaged less than luma; half of its damage taken off counts the same however little it is."""
    losses = []
    for damage in (0.02, 0.005):
        batch = make_batch()
        batch.chroma = batch.chroma_true + damage
        batch.error[:, 1:], batch.typical = damage**2, torch.zeros(2)
        residual = torch.zeros(2, 3, 3, HEIGHT, WIDTH)
        residual[:, 1:] = -damage / 2
        losses.append([loss(batch, 0.0, LITE, "relative"), loss(batch, residual, LITE, "relative")])
    assert losses[0] == pytest.approx([1.2, 1.05], rel=1e-3) and losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_consistency_is_measured_as_the_relative_loss_is() -> None:
    """Nothing from itself; from another answer as much as the relative loss would be, were that the truth."""
    batch = make_batch()
    tile = to_colour(batch.luma, batch.chroma, LITE, batch.matrix)
    restored = tile + 0.01 * random(*tile.shape)
    truth = to_colour(batch.luma_true, batch.chroma_true, LITE, batch.matrix)
    assert consistency_loss(restored, restored, batch, 0.2).item() == 0
    expected = training_loss(tile, restored, batch, LITE, "relative", 0.0).item()
    assert consistency_loss(restored, truth, batch, 0.0).item() == pytest.approx(expected, rel=1e-4)
    coloured = restored.clone()
    coloured[:, 1] += 0.01
    expected = 0.2 * (0.01**2 / (batch.error[:, 1] + 0.1 * batch.typical[:, None])).mean().item()
    assert consistency_loss(coloured, restored, batch, 0.2).item() == pytest.approx(expected, rel=1e-3)
