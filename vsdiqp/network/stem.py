"""Between pixels and the U: the released input and output projections, and a stem and head at half resolution.

The half-resolution pair is ours. It works on the clip's own Y, Cb, Cr: a cell of 2x2 pixels has four luma samples and,
as most clips are 4:2:0, one of each chroma. Values are fed as differences to a local mean, scaled up, beside the
mean: bf16 would lose half a code value of a mid-grey (spec/restoration-notes.md, lesson 2). Residual blocks with
weights shared by the three frames do the fine work; the U sees wider around.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsdiqp.network.config import FRAMES
from vsdiqp.network.lost import tile_pattern
from vsdiqp.network.native import eager_on_cpu
from vsdiqp.network.packing import PackedConv

GAIN = 0.25
"""Scale of the differences to the local mean, in units of the damage to expect: textures come near unit variance."""
MEAN_SIZE = 5
"""Side of the local mean in cells: 10 pixels, a little more than the coding grid's step."""
QUIET = 8
"""Side in pixels of the blocks that are left alone where they and those around them are flat, or of two levels."""
FAR_APART = 32.0
"""Difference, in 255ths of the range, from which on two levels are far apart: texture hardly ever leaves out all
between them."""
BETWEEN = 2.5
"""How far from the nearer of a block's two levels all its samples are, in 255ths of the range, where there is nothing
between them: two codes of 8 bits."""
CELL_INPUTS = 9
"""Inputs a cell and frame: 4 luma and 2 chroma differences, 3 means."""
CELL_OUTPUTS = 6
"""Outputs a cell and frame: 4 luma and 2 chroma residuals."""
CLIPS = (0.7, 2.0)
"""Limits, in units of damage, of the differences to aligned frames that the head weighs: beyond the first a
difference is hardly noise any more, beyond the second it is motion that was not found."""
NEAR = 2
"""Neighbours on each side that are seen in full. Farther ones bring less each: of those the stem sees how well they
match, one number a cell, and the head weighs their differences at one limit."""
FAR_CLIP = 1.2
"""That limit."""


class PixelStem(nn.Module):
    """Conv3d 3 -> E, 3x3x3, LeakyReLU 0.01: tokens of single pixels, as released."""

    def __init__(self, channels: int):
        super().__init__()
        self.project = PackedConv(3, channels, (3, 3, 3))

    def forward(self, tile: Tensor) -> Tensor:
        """B, 3, 3, H, W -> B, H, W, E * 3."""
        # First layer in full precision whatever the body runs in: the input has more bits than bf16 keeps.
        x = tile.flatten(1, 2).permute(0, 2, 3, 1).to(self.project.weight.dtype)
        return F.leaky_relu(self.project(x), 0.01)


class PixelHead(nn.Module):
    """Conv3d -> 3, 3x3x3: tokens of single pixels to the residual, as released."""

    def __init__(self, channels: int):
        super().__init__()
        self.project = PackedConv(channels, 3, (3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, C * 3 -> B, 3, 3, H, W."""
        y = self.project(x.to(self.project.weight.dtype)).permute(0, 3, 1, 2)
        return torch.unflatten(y, 1, (3, FRAMES))


class FrameBlock(nn.Module):
    """Residual block of two 3x3 convolutions with weights shared by the frames, modulated by the location's vector."""

    def __init__(self, channels: int, code: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(code, 2 * channels)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """x: B * 3, C, h, w (frames of an item contiguous); code: B, K. Returns x's shape."""
        modulation = self.modulate(code)
        if code.shape[0] == 1 and eager_on_cpu(x) and not torch.is_grad_enabled():
            # One item's modulation goes into the weights: a pass less over the features.
            scale, shift = modulation[0].chunk(2)
            weight = self.conv1.weight * (1 + scale)[:, None, None, None]
            assert self.conv1.bias is not None
            y = F.conv2d(x, weight, torch.addcmul(shift, self.conv1.bias, 1 + scale), padding=1).relu_()
        else:
            scale, shift = modulation.repeat_interleave(FRAMES, 0)[..., None, None].to(x.dtype).chunk(2, 1)
            y = torch.addcmul(shift, self.conv1(x), 1 + scale).relu_()
        return self.conv2(y).add_(x)


def to_frames(x: Tensor, frame_major: bool = False) -> Tensor:
    """Tokens B, h, w, C * 3 -> images B * 3, C, h, w in channels-last memory.

    Channels of a token are ordered c * 3 + f, or f * C + c with ``frame_major``, whose copies move whole runs of C.
    """
    batch, height, width, _ = x.shape
    frames = x.view(batch, height, width, FRAMES, -1) if frame_major else x.view(batch, height, width, -1, FRAMES).mT
    return frames.permute(0, 3, 1, 2, 4).reshape(batch * FRAMES, height, width, -1).permute(0, 3, 1, 2)


def to_tokens(x: Tensor, frame_major: bool = False) -> Tensor:
    """Images B * 3, C, h, w -> tokens B, h, w, C * 3: the inverse of `to_frames`."""
    images, channels, height, width = x.shape
    frames = x.permute(0, 2, 3, 1).reshape(images // FRAMES, FRAMES, height, width, channels).permute(0, 2, 3, 1, 4)
    return (frames if frame_major else frames.mT).flatten(3)


def local_mean(x: Tensor) -> Tensor:
    """Mean over MEAN_SIZE x MEAN_SIZE cells, fewer at the border: N, C, h, w -> the same shape."""
    size, pad = MEAN_SIZE, MEAN_SIZE // 2
    rows = F.avg_pool2d(x, (size, 1), stride=1, padding=(pad, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, size), stride=1, padding=(0, pad), count_include_pad=False)


def cell_inputs(tile: Tensor, damage: Tensor) -> Tensor:
    """B, 3, 3, H, W of Y, Cb, Cr in 0..1 and B RMS errors -> B * 3, 9, H / 2, W / 2, fp32."""
    luma = tile[:, 0].flatten(0, 1)[:, None]
    chroma = F.avg_pool2d(tile[:, 1:].transpose(1, 2).flatten(0, 1), 2)
    cells = torch.cat([F.pixel_unshuffle(luma, 2), chroma], 1)
    mean = local_mean(torch.cat([F.avg_pool2d(luma, 2), chroma], 1))
    around = torch.cat([mean[:, :1].expand(-1, 4, -1, -1), mean[:, 1:]], 1)
    gain = (GAIN / damage).repeat_interleave(FRAMES)[:, None, None, None]
    return torch.cat([(cells - around) * gain, mean - 0.5], 1)


def seen_from(cells: Tensor) -> Tensor:
    """B * 3, 6+, h, w -> B * 3, 12, h, w: differences of the other two frames to each frame, the nearer one first.

    Restoring n-1 needs n and n+1 as much as n needs both. As differences they are near zero wherever nothing moved.
    """
    frames = torch.unflatten(cells, 0, (-1, FRAMES))[:, :, : CELL_INPUTS - 3]
    near = torch.stack([frames[:, 1] - frames[:, 0], frames[:, 0] - frames[:, 1], frames[:, 1] - frames[:, 2]], 1)
    far = torch.stack([frames[:, 2] - frames[:, 0], frames[:, 2] - frames[:, 1], frames[:, 0] - frames[:, 2]], 1)
    return torch.cat([near, far], 2).flatten(0, 1)


def seen_beside(tile: Tensor, beside: Tensor, damage: Tensor) -> Tensor:
    """B, 3, 3, H, W and aligned luma B, 3, N, H, W of the frames beside each -> B * 3, 4 N, H / 2, W / 2, fp32.

    Their differences to the frame in units of damage: where alignment succeeded, they are noise alone.
    """
    gain = (GAIN / damage)[:, None, None, None, None]
    return F.pixel_unshuffle(((beside - tile[:, 0, :, None]) * gain).flatten(0, 1), 2)


def near_and_far(seen: int) -> tuple[int, int]:
    """How many of ``seen`` frames (`vsdiqp.alignment.seen_steps`) are seen in full, and how many are not.

    NEAR on each side are, and so is the frame itself as a first pass restored it.
    """
    near = min(seen, 2 * NEAR + seen % 2)
    return near, seen - near


def stem_view(others: Tensor, seen: int) -> Tensor:
    """What the stem is given of `seen_beside`: N, `beside_inputs`, h, w. Of far neighbours the mean distance of a
    cell's samples, up to four times the damage: how much more says nothing further."""
    near, far = near_and_far(seen)
    if not far:
        return others
    distance = torch.unflatten(others[:, 4 * near :], 1, (far, 4)).abs().mean(2).clamp(max=4 * GAIN)
    return torch.cat([others[:, : 4 * near], distance], 1)


def beside_inputs(seen: int) -> int:
    """Inputs a cell and frame that show other frames."""
    near, far = near_and_far(seen)
    return 4 * near + far if seen else 2 * (CELL_INPUTS - 3)


def head_channels(seen: int) -> int:
    """Channels of the last convolution: residuals, weights of the frames beside, filled up to a multiple of 16."""
    near, far = near_and_far(seen)
    return -(-(CELL_OUTPUTS + len(CLIPS) * near + far) // 16) * 16


def pattern_channels(seen: int) -> int:
    """Channels of the location's pattern: at least 5, so many that all inputs are a multiple of 16.

    CPU kernels for other numbers are several times slower.
    """
    rest = -(CELL_INPUTS + beside_inputs(seen)) % 16
    return rest if rest >= 5 else rest + 16


def liveliness(tile: Tensor) -> Tensor:
    """B, 3, F, H, W -> the same shape: 0 where a plane's surroundings were drawn as they are, 1 elsewhere.

    Surroundings are a block of the coding grid and the eight blocks around it. Where they are perfectly flat (black
    bars, title cards, the fills of cartoons, the chroma of black and white film; 1 from a code of 8 bits on), or where
    every block has two levels far apart and nothing between them (pixel patterns, unsmoothed text), codecs kept them
    with hardly an error, and what would be added is one. Sides are multiples of QUIET.
    """
    batch, colours, frames, height, width = tile.shape
    blocks = tile.reshape(1, batch * colours * frames, height // QUIET, QUIET, width // QUIET, QUIET)
    high, low = blocks.amax((3, 5), keepdim=True), blocks.amin((3, 5), keepdim=True)
    # The distance to the nearer of the two levels.
    inner = ((high - low) / 2 - (blocks - (high + low) / 2).abs()).amax((3, 5))
    around = F.max_pool2d(torch.cat([high[..., 0, :, 0], -low[..., 0, :, 0], inner]), 3, stride=1, padding=1) * 255
    span = around[:1] + around[1:2]
    drawn = ((span - FAR_APART) / 4).clamp(0, 1) * (1 - ((around[2:] - BETWEEN) / 2).clamp(0, 1))
    share = span.clamp(max=1) * (1 - drawn)
    return F.interpolate(share, scale_factor=float(QUIET), mode="nearest").view(tile.shape)


class CellStem(nn.Module):
    """Cells of 2x2 pixels of three frames -> features a frame: `inputs`, then `forward`.

    ``seen``: frames beside each (`vsdiqp.alignment.seen_steps`); 0: the other two as they lie.
    """

    def __init__(self, channels: int, blocks: int, code: int, seen: int = 0):
        super().__init__()
        self.seen = seen
        inputs = CELL_INPUTS + beside_inputs(seen) + pattern_channels(seen)
        self.project = nn.Conv2d(inputs, channels, 3, padding=1)
        self.blocks = nn.ModuleList(FrameBlock(channels, code) for _ in range(blocks))

    def inputs(self, tile: Tensor, pattern: Tensor, damage: Tensor, others: Tensor | None) -> Tensor:
        """What the first convolution reads: B * 3, C, H / 2, W / 2 in the pattern's precision.

        tile: B, 3, 3, H, W; pattern: B, 4, 4, K; damage: B; others: `seen_beside`, only where frames are ``seen``.
        """
        cells = cell_inputs(tile, damage)
        others = seen_from(cells) if others is None else stem_view(others, self.seen)
        place = tile_pattern(pattern, tile.shape[-2] // 2, tile.shape[-1] // 2).permute(0, 3, 1, 2)
        place = place.repeat_interleave(FRAMES, 0)
        x = torch.cat([cells.to(pattern.dtype), others.to(pattern.dtype), place], 1)
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """`inputs` and B, K -> features B * 3, C, H / 2, W / 2."""
        features = F.relu(self.project(x))
        for block in self.blocks:
            features = block(features, code)
        return features


class CellHead(nn.Module):
    """Features a frame -> the residual of 2x2 luma samples and their chroma: `forward`, then `residual`.

    Beside residuals of its own it predicts a weight for every frame seen and each of CLIPS, cell by cell, and adds
    the clipped differences so weighted: averaging over time, exact to the sample, where it can be trusted. The
    features would have to carry every sample of every neighbour otherwise.
    """

    def __init__(self, channels: int, blocks: int, code: int, seen: int = 0):
        super().__init__()
        self.seen = seen
        self.blocks = nn.ModuleList(FrameBlock(channels, code) for _ in range(blocks))
        self.project = nn.Conv2d(channels, head_channels(seen), 3, padding=1)
        with torch.no_grad():  # a fresh network predicts next to nothing: it starts at its input, not at noise
            self.project.weight.mul_(0.1)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """B * 3, C, h, w and B, K -> what `residual` reads: B * 3, `head_channels`, h, w."""
        for block in self.blocks:
            features = block(features, code)
        y: Tensor = self.project(features)
        return y

    def residual(self, y: Tensor, tile: Tensor, damage: Tensor, others: Tensor | None = None) -> Tensor:
        """`forward`'s result, tiles and B RMS errors -> residual B, 3, 3, H, W (fp32). others: `seen_beside`."""
        change = y[:, :4].float()
        if others is not None:
            change = change + self._average(y[:, CELL_OUTPUTS:], others)
        unit = damage.repeat_interleave(FRAMES)[:, None, None, None]
        luma = F.pixel_shuffle(change * unit, 2)
        chroma = F.interpolate(y[:, 4:CELL_OUTPUTS].float() * unit, scale_factor=2.0, mode="nearest")
        residual = torch.cat([luma, chroma], 1)
        return torch.unflatten(residual, 0, (-1, FRAMES)).transpose(1, 2) * liveliness(tile)

    def _average(self, weights: Tensor, others: Tensor) -> Tensor:
        """N, 4, h, w: differences of the frames seen, clipped and weighted, in units of damage."""
        near, far = near_and_far(self.seen)
        differences = torch.unflatten(others, 1, (near + far, 4)) / GAIN
        weighed = [differences[:, :near].clamp(-limit, limit) for limit in CLIPS]
        if far:
            weighed.append(differences[:, near:].clamp(-FAR_CLIP, FAR_CLIP))
        total, first = torch.zeros_like(differences[:, 0]), 0
        for seen in weighed:
            share = weights[:, first : first + seen.shape[1], None].float()
            total, first = total + (seen * share).sum(1), first + seen.shape[1]
        return total
