"""DiQP: three decoded frames in, the same three with the codec's damage removed out.

Source: "Reversing the Damage: A QP-Aware Transformer-Diffusion Approach for 8K Video Restoration under Codec
Compression" (WACV 2025), as specified in spec/diqp.md. One class for the released network and for ours; `DiQPConfig`
says which parts a network has.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsdiqp.errors import DiqpError
from vsdiqp.network import cells
from vsdiqp.network.config import FRAMES, DiQPConfig
from vsdiqp.network.guides import GuideChain
from vsdiqp.network.joins import Beside, Joins, PlainJoins
from vsdiqp.network.lewin import Stage, WindowAttention
from vsdiqp.network.lost import ContinuousLocation, TableLocation
from vsdiqp.network.packing import FrameUpsample, Packed, PackedConv, PackedUpsample
from vsdiqp.network.stem import (
    CellHead,
    CellStem,
    PixelHead,
    PixelStem,
    pattern_channels,
    seen_beside,
    to_frames,
    to_tokens,
)

Guides = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""What depends on whole frames alone: maps of Look Around, and of Look Ahead's scaled half, one a level."""

CODE = 64
"""Length of the continuous location's vector."""


class LookAhead(nn.Module):
    """Two chains of the same kind, one over the tile, one over whole frames, concatenated level by level."""

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.cropped = GuideChain(widths, first_stride=2)
        self.scaled = GuideChain(widths, first_stride=2)


class DiQP(nn.Module):
    """The network. Inputs and outputs are fp32 whatever precision the body runs in (`to_precision`)."""

    def __init__(self, config: DiQPConfig):
        super().__init__()
        self.config = config
        self.cell_steps: cells.CellSteps | None = None
        """Who takes the steps between picture and convolutions, with neighbours; None: the CPU's, or stem and head."""
        self.joins: Joins = PlainJoins(config.skip == "concat")
        """Who takes the steps between the stages of the U."""
        frames = config.token_frames
        levels, widths = config.levels, [config.width(i) for i in range(config.levels + 1)]
        grid = config.tile // config.stem_scale

        def stage(channels: int, index: int, level: int) -> Stage:
            return Stage(
                channels,
                config.depths[index],
                config.heads[index],
                config.window,
                config.mlp_ratio,
                config.depthwise_taps,
                grid // 2**level,
                frames,
            )

        self.lost: TableLocation | ContinuousLocation
        if config.location == "tables":
            self.lost = TableLocation(config.table_rows)
            extra = 1
        else:
            self.lost = ContinuousLocation(config.codecs, dict(config.qp_range), CODE, pattern_channels(config.seen))
            extra = 1
        self.stem: PixelStem | CellStem
        self.head: PixelHead | CellHead
        doubled = 2 if config.skip == "concat" else 1
        if config.stem_scale == 1:
            self.stem, self.head = PixelStem(widths[0]), PixelHead(doubled * widths[0])
        else:
            assert isinstance(self.lost, ContinuousLocation)
            self.stem = CellStem(widths[0], config.stem_blocks, CODE, config.seen)
            self.head = CellHead(doubled * widths[0], config.head_blocks, CODE, config.seen)

        self.look_around = GuideChain(config.look_around, first_stride=1) if config.look_around else None
        self.look_ahead = LookAhead(config.look_ahead) if config.look_ahead else None
        # Guide and location channels are concatenated to tokens, so they count in tokens, not in channels a frame:
        # where a token carries all frames, the convolution reads all of them as (c, f).
        around = [2 * config.look_around[0], *config.look_around[1:]] if config.look_around else [0] * levels
        ahead = [2 * w for w in config.look_ahead] if config.look_ahead else [0] * levels
        self.padding_around = [-(w + extra) % frames for w in around]
        self.padding_ahead = [-(w + extra) % frames for w in ahead]

        # Without blocks at level 0 nothing there reads channels as (c, f): frames can stay whole.
        self.frame_major = (
            config.joint
            and config.stem_scale == 2
            and config.skip == "add"
            and config.depths[0] == config.depths[-1] == 0
        )
        kernel = (frames, config.down_kernel, config.down_kernel)
        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        for i in range(levels):
            self.encoder.append(stage(frames * widths[i], i, i))
            inputs = widths[i] + (around[i] + extra + self.padding_around[i]) // frames
            padding = (config.down_kernel - 2) // 2
            whole = widths[0] if self.frame_major and i == 0 else 0
            self.down.append(
                PackedConv(inputs, widths[i + 1], kernel, stride=2, padding=padding, frame_major=whole, frames=frames)
            )
        self.bottleneck = stage(frames * widths[levels], levels, levels)
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        below = widths[levels]
        for i in range(levels):
            level = levels - 1 - i
            inputs = below + (ahead[level] + extra + self.padding_ahead[level]) // frames
            self.up.append(
                PackedUpsample(inputs, widths[level], frame_major=self.frame_major and level == 0)
                if config.joint
                else FrameUpsample(inputs, widths[level])
            )
            below = doubled * widths[level]
            self.decoder.append(stage(frames * below, levels + 1 + i, level))
        self.float()  # whatever torch's default is: other users of the process may have changed it

    # -- preparation ---------------------------------------------------------------------------------------------------

    def prepare(self) -> "DiQP":
        """Evaluation mode, with packed weights and attention biases made once. Call after the last weight change."""
        self.eval()
        for module in self.modules():
            if isinstance(module, Packed | WindowAttention):
                module.prepare()
        return self

    def to_precision(self, dtype: torch.dtype) -> "DiQP":
        """Run the body in ``dtype`` (fp32, fp16 or bf16).

        Inputs and last sums stay fp32, and so do stem and head where they work on single pixels. Prepared weights are
        made in fp32 first and rounded once.
        """
        self.prepare()
        for name, child in self.named_children():
            full = name in ("lost",) or (name in ("stem", "head") and self.config.stem_scale == 1)
            child.to(torch.float32 if full else dtype)
        return self

    @property
    def body_dtype(self) -> torch.dtype:
        """Precision of the U."""
        return next(self.down.parameters()).dtype

    # -- inputs --------------------------------------------------------------------------------------------------------

    def locate(
        self,
        qp: float,
        codec: str,
        middle: int,
        frames: int,
        left: int,
        top: int,
        width: int,
        height: int,
        tile_h: int,
        tile_w: int,
    ) -> tuple[Tensor, float]:
        """Location (6 numbers, fp64) and weight decay of one tile.

        qp: in the codec's scale, clamped to the trained range. middle: index of the middle frame of a clip of
        ``frames``. left, top: the tile's position in a frame of width x height pixels. Raises DiqpError for frames
        larger than the location tables and for a codec the network does not know.
        """
        if codec not in self.config.qp_range:
            raise DiqpError(
                f"this checkpoint was not trained for codec {codec!r}; it knows {', '.join(self.config.codecs)}: give "
                f"one of these as codec, or another model"
            )
        low, high = self.config.qp_range[codec]
        qp = min(max(qp, low), high)
        if isinstance(self.lost, TableLocation):
            return self.lost.locate(qp, middle, frames, left, top, width, height, (tile_h, tile_w))
        return self.lost.locate(qp, codec, left, top, width, height)

    def confidence(self, qp: float, codec: str) -> float:
        """How far a prediction at this QP is trusted: `DiQPConfig.trust`, falling to 0 below the trained range.

        Below the trained range the input is close to the source, and the network, clamped to its lowest QP, would
        overdo it. A quarter of the range's lower bound below it, nothing is done.
        """
        low = self.config.qp_range.get(codec, (0, 0))[0]
        fade = min(max(1 - (low - qp) / max(low / 4, 1.0), 0.0), 1.0)
        return fade * _share(self.config.trust.get(codec, ()), qp)

    def chroma_confidence(self, qp: float, codec: str) -> float:
        """How far what is predicted of chroma is trusted, beside luma: `DiQPConfig.chroma_trust`."""
        return _share(self.config.chroma_trust.get(codec, ()), qp)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def frame_guides(self, around: Tensor, ahead_scaled: Tensor, weight_decay: Tensor) -> Guides:
        """The guides that depend on whole frames alone: once a group, not once a tile.

        around, ahead_scaled: B, 3, 2, H, W thumbnails; weight_decay: B, 1, 1, 1, 1. Returns maps of B, h, w, C.
        """
        looked_around: list[Tensor] = []
        scaled: list[Tensor] = []
        if self.look_around is not None:
            looked_around = self.look_around(self._on_grid(around))
        if self.look_ahead is not None:
            scaled = self.look_ahead.scaled(self._on_grid(ahead_scaled), weight_decay)
        return tuple(looked_around), tuple(scaled)

    def _on_grid(self, pictures: Tensor) -> Tensor:
        """What a guide reads: B, 3, F, H, W pictures of a tile's size on the grid of level 0, in the body's precision.

        Cells of 2x2 pixels become their means, so that level 1 of a guide has the size of level 0 of the U.
        """
        if self.config.stem_scale == 2:
            pictures = F.avg_pool3d(pictures, (1, 2, 2))
        return pictures.to(self.body_dtype)

    def restore(
        self,
        tile: Tensor,
        ahead_tile: Tensor,
        guides: Guides,
        location: Tensor,
        weight_decay: Tensor,
        beside: Tensor | None = None,
    ) -> Tensor:
        """Restore tiles with guides already made; see `forward` for shapes. Guides of batch 1 serve the whole batch."""
        return tile + self.predict(tile, ahead_tile, guides, location, weight_decay, beside)

    def predict(
        self,
        tile: Tensor,
        ahead_tile: Tensor,
        guides: Guides,
        location: Tensor,
        weight_decay: Tensor,
        beside: Tensor | None = None,
    ) -> Tensor:
        """The residual alone: B, 3, 3, H, W, fp32."""
        dtype = self.body_dtype
        pattern = self.lost(location).to(dtype)
        code = damage = others = None
        steps: cells.CellSteps | None = None
        if isinstance(self.stem, CellStem):
            assert isinstance(self.lost, ContinuousLocation)
            code, damage = self.lost.code(location).to(dtype), self.lost.damage(location).float()
            if self.config.neighbours:
                assert beside is not None
                steps = self.cell_steps
                if steps is None and cells.usable(tile, dtype):
                    steps = cells
                if steps is None:
                    others = seen_beside(tile, beside, damage)
            if steps is None:
                inputs = self.stem.inputs(tile, pattern, damage, others)
            else:
                assert beside is not None
                inputs = steps.stem_inputs(tile, beside, pattern, damage)
            features = self.stem(inputs, code)
            x = to_tokens(features, self.frame_major) if self.config.joint else features.permute(0, 2, 3, 1)
            pattern = self._each_frame(pattern)
        else:
            x = self.stem(tile).to(dtype)

        looked_around, scaled = ([self._each_frame(g) for g in maps] for maps in guides)
        cropped: list[Tensor] = []
        if self.look_ahead is not None:
            maps = self.look_ahead.cropped(self._on_grid(ahead_tile), weight_decay)
            cropped = [self._each_frame(m) for m in maps]
        ahead = list(zip(cropped, scaled, strict=True))

        skips: list[Tensor] = []
        for i, (encode, down) in enumerate(zip(self.encoder, self.down, strict=True)):
            x = encode(x)
            skips.append(x)
            x = self.joins.down(down, x, Beside(looked_around[i : i + 1], self.padding_around[i], pattern))
        x = self.bottleneck(x)
        for i, (up, decode) in enumerate(zip(self.up, self.decoder, strict=True)):
            level = len(skips) - 1 - i
            behind = Beside(ahead[level] if ahead else (), self.padding_ahead[level], pattern)
            x = self.joins.up(up, decode, x, skips[level], behind)
        if isinstance(self.head, CellHead):
            assert code is not None and damage is not None
            features = to_frames(x, self.frame_major) if self.config.joint else x.permute(0, 3, 1, 2)
            answer = self.head(features, code)
            if steps is None:
                return self.head.residual(answer, tile, damage, others)
            assert beside is not None
            return steps.residual(answer, tile, beside, damage)
        return self.head(x).float()

    def _each_frame(self, shared: Tensor) -> Tensor:
        """What belongs to a tile, for each row of the U's batch: there a frame may be a row of its own."""
        return shared if self.config.joint or shared.shape[0] == 1 else shared.repeat_interleave(FRAMES, 0)

    def forward(
        self,
        tile: Tensor,
        around: Tensor,
        ahead_tile: Tensor,
        ahead_scaled: Tensor,
        location: Tensor,
        weight_decay: Tensor,
        beside: Tensor | None = None,
    ) -> Tensor:
        """Restore a batch of tiles (spec/diqp.md, "Inputs").

        tile: B, 3, 3, H, W (colour, frame, y, x), 0..1, H and W multiples of ``config.multiple``.
        around: B, 3, 2, H, W, whole frames n-1 and n+1 shrunk. ahead_tile: B, 3, 2, H, W, the tile of frame n+1 and of
        the look-ahead frame. ahead_scaled: B, 3, 2, H, W, both as whole frames shrunk. location: 6, B, 1 (see
        `locate`). weight_decay: B, 1, 1, 1, 1. beside: with ``config.neighbours``, B, 3, ``config.seen``, H, W: luma
        0..1 of the frames that n-1, n, n+1 are seen beside, each aligned to its frame, in the order of
        `vsdiqp.alignment.seen_steps`.
        Returns tile + prediction: B, 3, 3, H, W, not clamped.
        """
        guides = self.frame_guides(around, ahead_scaled, weight_decay)
        return self.restore(tile, ahead_tile, guides, location, weight_decay, beside)


def _share(points: Sequence[tuple[float, float]], qp: float) -> float:
    """The share at a QP: straight lines between (QP, share) points, level beyond the outermost; without any 1."""
    if not points:
        return 1.0
    right = next((i for i, (at, _) in enumerate(points) if at >= qp), len(points))
    if right in (0, len(points)):
        return points[min(right, len(points) - 1)][1]
    (q0, s0), (q1, s1) = points[right - 1], points[right]
    return s0 + (s1 - s0) * (qp - q0) / (q1 - q0)
