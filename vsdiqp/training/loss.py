"""What training minimises."""

import torch
from torch import Tensor

from vsdiqp.network.config import DiQPConfig
from vsdiqp.training.batches import LUMA_WEIGHTS, Batch, to_colour, unsited

CHARBONNIER_EPSILON = 1e-3
ERROR_FLOOR = 0.1
"""Share of the error typical at a QP that is added to a frame's own: frames over 10 dB better than usual have next to
nothing to gain, and must not dominate the relative loss."""


def charbonnier(difference: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + eps^2), eps = 1e-3 (spec/diqp.md, "The task")."""
    return (difference.square() + CHARBONNIER_EPSILON**2).sqrt().mean()


def planes_error(tile: Tensor, restored: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Errors in the clip's own planes of a YCbCr network: luma B, 3, h, w and chroma B, 2, 3, h/2, w/2."""
    residual = restored - tile
    luma = batch.luma + residual[:, 0] - batch.luma_true
    return luma, batch.chroma + unsited(residual[:, 1:]) - batch.chroma_true


def training_loss(tile: Tensor, restored: Tensor, batch: Batch, config: DiQPConfig, kind: str, chroma: float) -> Tensor:
    """The loss of a batch.

    "relative" divides a sample's squared error by its whole frame's error before restoration, plane by plane: its mean
    then moves with the mean PSNR gain, which is a mean of logarithms (spec/restoration-notes.md, lesson 3), yet flat
    patches of a busy frame keep their small weight. ``chroma``: weight of each chroma plane beside luma.
    """
    if config.colour == "rgb":
        truth = to_colour(batch.luma_true, batch.chroma_true, config, batch.matrix)
        if kind == "charbonnier":
            return charbonnier(restored - truth)
        error = (restored - truth).square().mean((1, 3, 4))
        return (error * _weight(batch)[:, 0]).mean()
    luma, colour = planes_error(tile, restored, batch)
    if kind == "charbonnier":
        return charbonnier(luma) + chroma * 2 * charbonnier(colour)
    weight = _weight(batch)
    loss = (luma.square().mean((2, 3)) * weight[:, 0]).mean()
    return loss + chroma * 2 * (colour.square().mean((3, 4)) * weight[:, 1:]).mean()


def _weight(batch: Batch) -> Tensor:
    """B, 3, 3: what a squared error counts, by plane and frame."""
    return 1 / (batch.error + ERROR_FLOOR * batch.typical[:, None, None])


def imitation_loss(tile: Tensor, restored: Tensor, batch: Batch) -> Tensor:
    """Squared distance of the luma residual to the teacher's, in units of the damage to expect, scaled to compare."""
    assert batch.taught is not None and batch.taught_frame is not None
    rows = torch.arange(len(batch.taught), device=tile.device)
    residual = (restored - tile)[rows, 0, batch.taught_frame]
    return 10 * ((residual - batch.taught).square().mean((1, 2)) / batch.typical).mean()


def distillation_loss(tile: Tensor, restored: Tensor, taught: Tensor, batch: Batch, chroma: float) -> Tensor:
    """Squared distance to what another network makes of the same tiles, in units of the damage to expect, weighed as
    `imitation_loss`. Samples that the other network harms don't count. ``chroma``: weight of each plane beside luma.
    """
    after = (batch.luma + (taught - tile)[:, 0] - batch.luma_true).square().mean((1, 2, 3))
    helped = after <= (batch.luma - batch.luma_true).square().mean((1, 2, 3))
    distance = (restored - taught).square().mean((2, 3, 4)) * (helped / batch.typical)[:, None]
    return 10 * (distance[:, 0] + chroma * distance[:, 1:].sum(1)).mean()


def consistency_loss(restored: Tensor, taught: Tensor, batch: Batch, chroma: float) -> Tensor:
    """Squared distance of a YCbCr network's result to another answer for the same samples, in the units of the
    "relative" `training_loss`. ``chroma``: weight of each plane beside luma."""
    distance = (restored - taught).square().mean((3, 4)) * _weight(batch)
    return distance[:, 0].mean() + chroma * distance[:, 1:].sum(1).mean()


def luma_gain(tile: Tensor, restored: Tensor, batch: Batch, config: DiQPConfig, codes: int = 0) -> Tensor:
    """Y-PSNR gain in dB of every sample and frame: B, 3. ``codes``: code values in 0..1 to round to, if any."""
    if config.colour == "ycbcr":
        after = batch.luma + (restored - tile)[:, 0]
    else:
        red, blue = restored.new_tensor([LUMA_WEIGHTS[matrix] for matrix in batch.matrix]).unbind(1)
        weights = torch.stack([red, 1 - red - blue, blue], 1)
        after = batch.luma + torch.einsum("bcfhw,bc->bfhw", restored - tile, weights)
    if codes:
        after = (after * codes).round() / codes
    before_error = (batch.luma - batch.luma_true).square().mean((2, 3)) + 1e-9
    after_error = (after.clamp(-0.1, 1.1) - batch.luma_true).square().mean((2, 3)) + 1e-9
    return 10 * torch.log10(before_error / after_error)


def chroma_gain(residual: Tensor, batch: Batch, codes: int = 0) -> Tensor:
    """PSNR gain in dB of every sample's planes, Cb and Cr, over its frames: B, 2.

    ``residual``: what is added to ``batch.chroma``, B, 2, 3, h / 2, w / 2 (`unsited`). ``codes``: code values in a
    range of 1 to round to, if any.
    """
    after = batch.chroma + residual
    if codes:
        after = (after * codes).round() / codes
    before_error = (batch.chroma - batch.chroma_true).square().mean((2, 3, 4)) + 1e-9
    return 10 * torch.log10(before_error / ((after - batch.chroma_true).square().mean((2, 3, 4)) + 1e-9))
