"""What makes one DiQP network different from another: sizes, stem, guides, location, and what it was trained for."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vsdiqp.errors import DiqpError

FRAMES = 3
"""Frames a network restores at once; a token carries all of them."""


@dataclass(frozen=True, slots=True)
class DiQPConfig:
    """Architecture and training facts of a DiQP network. The defaults are the released network's (spec/diqp.md).

    A network has ``levels = len(depths) // 2`` encoder levels, a bottleneck, and as many decoder levels. Level 0 works
    on a grid of ``stem_scale`` pixels, each further level on half of the one before.
    """

    name: str = "diqp"
    embed_dim: int = 15
    """Channels a frame at level 0 of the U."""
    widths: tuple[int, ...] = ()
    """Channels a frame of every level and the bottleneck; empty doubles ``embed_dim`` at every level."""
    depths: tuple[int, ...] = (1, 2, 8, 8, 2, 8, 8, 2, 1)
    """LeWin blocks of every encoder level, the bottleneck, every decoder level."""
    heads: tuple[int, ...] = (1, 2, 4, 8, 16, 16, 8, 4, 2)
    window: int = 8
    mlp_ratio: int = 3
    depthwise_taps: int = 3
    """Frames that the feed-forward's depthwise convolution spans: 3 as released, 1 leaves time to the linear layers."""
    joint: bool = True
    """Whether a token of the U carries all three frames, as released. False: every frame goes through it by itself and
    sees others only through ``neighbours``, so that its result does not depend on which frames it is grouped with."""
    skip: str = "concat"
    """How a skip joins the decoder: "concat" doubles the width of the decoder's blocks, "add" keeps it."""
    down_kernel: int = 4
    """Side of the downsampling convolution: 4 (overlapping, as released) or 2."""
    stem_scale: int = 1
    """1: the stem works on pixels, as released. 2: on 2x2 cells of luma with halved chroma (``colour`` "ycbcr")."""
    stem_blocks: int = 0
    """Residual convolution blocks a frame before the U; only with ``stem_scale`` 2."""
    head_blocks: int = 0
    """The same after the U."""
    neighbours: int = 0
    """Frames on each side that every frame is seen beside, luma only and aligned to it (`vsdiqp.alignment`); only with
    ``stem_scale`` 2. 0: the other two frames of its group, as they lie."""
    first_pass: str = ""
    """The shipped network that restores the frames which ``neighbours`` are taken from and found by: they have less
    damage than as decoded, and have themselves seen frames farther away. What it makes of the frame itself is seen
    beside them. Empty: the decoded frames."""
    look_around: tuple[int, ...] = (7, 17, 23, 29)
    """Channels of Look Around's levels; empty drops the guide."""
    look_ahead: tuple[int, ...] = (7, 10, 13, 16)
    """Channels of Look Ahead's levels; empty drops the guide."""
    location: str = "tables"
    """"tables": the released embeddings by index. "continuous": a small perceptron, any frame size and QP."""
    table_rows: tuple[int, int, int, int, int, int] = (86, 151, 8192, 4320, 512, 512)
    """Rows of the location tables: QP, frame, left, top, shrunk left, shrunk top."""
    tile: int = 512
    """Tile side in pixels the network was built for; the default when running it. Decides which stages shift."""
    overlap: int = 32
    """Pixels that neighbouring tiles share by default."""
    colour: str = "rgb"
    """"rgb", or "ycbcr": the clip's own luma 0..1 and chroma centred at 0.5, as full-size planes."""
    frames_ahead: int = 50
    """T, how far the look-ahead frame lies beyond the third frame."""
    codecs: tuple[str, ...] = ("hevc",)
    qp_range: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"hevc": (3, 51)})
    """QPs trained on, for each codec, in its own scale."""
    trust: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """Share of the prediction to apply, for each codec as (QP, share) points, straight lines between; measured on
    clips that were not trained on; a little over 1 where a network is too careful. Empty: 1 everywhere in
    ``qp_range``."""
    chroma_trust: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """Share to apply of what is predicted of chroma, of what is applied of luma, as ``trust`` has it; for colour
    "ycbcr" only. Chroma is damaged less, and at fine QPs rounding costs it more."""
    origin: str = ""
    """Who made the weights and from what."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        levels = self.levels
        if len(self.depths) != 2 * levels + 1 or len(self.heads) != len(self.depths):
            raise DiqpError(
                f"a network needs one depth and one head count for every encoder level, the bottleneck and every "
                f"decoder level (an odd number); got {len(self.depths)} depths and {len(self.heads)} head counts"
            )
        if self.widths and len(self.widths) != levels + 1:
            raise DiqpError(f"{levels} levels and a bottleneck need {levels + 1} widths; got {len(self.widths)}")
        for guide, sizes in (("look_around", self.look_around), ("look_ahead", self.look_ahead)):
            if sizes and len(sizes) != levels:
                raise DiqpError(f"{guide} needs {levels} sizes, one a level, or none; got {len(sizes)}")
        choices = {"skip": ("concat", "add"), "colour": ("rgb", "ycbcr"), "location": ("tables", "continuous")}
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise DiqpError(f"{name} must be one of {', '.join(accepted)}; got {getattr(self, name)!r}")
        if self.stem_scale not in (1, 2) or (self.stem_scale == 2 and self.colour != "ycbcr"):
            raise DiqpError(f"stem_scale must be 1, or 2 with colour 'ycbcr'; got {self.stem_scale}, {self.colour!r}")
        if self.stem_scale == 2 and self.location != "continuous":
            raise DiqpError(
                "stem_scale 2 needs location 'continuous': its blocks are modulated by the location's vector"
            )
        if self.stem_scale == 1 and (self.stem_blocks or self.head_blocks):
            raise DiqpError("stem_blocks and head_blocks are parts of stem_scale 2; give 0 of both with stem_scale 1")
        if self.neighbours < 0 or (self.neighbours and self.stem_scale == 1):
            raise DiqpError(f"neighbours is {self.neighbours}; it may be 0, or more with stem_scale 2")
        if self.first_pass and not self.neighbours:
            raise DiqpError(f"first_pass is {self.first_pass!r}, but the network sees no neighbours; give neighbours")
        if not self.joint and not (self.neighbours and self.depthwise_taps == 1):
            raise DiqpError(
                f"frames that go through the network one by one (joint = false) need neighbours to see others by, and "
                f"depthwise_taps 1; got neighbours {self.neighbours} and depthwise_taps {self.depthwise_taps}"
            )
        for index, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            channels = self.stage_channels(index)
            if depth and (heads < 1 or channels % heads):
                raise DiqpError(f"stage {index} has {channels} channels, which {heads} heads do not divide")
        if set(self.qp_range) != set(self.codecs) or not self.codecs:
            raise DiqpError(
                f"qp_range must name the codecs {', '.join(self.codecs) or '(none given)'} and no others; it names "
                f"{', '.join(self.qp_range) or 'none'}"
            )
        if self.chroma_trust and self.colour != "ycbcr":
            raise DiqpError(f"chroma_trust is for networks with colour 'ycbcr'; this one has {self.colour!r}")
        for codec, (low, high) in self.qp_range.items():
            if not low < high:
                raise DiqpError(f"qp_range of {codec} must go from a lower to a higher QP; got {low} to {high}")
        if self.depthwise_taps not in (1, 3):
            raise DiqpError(f"depthwise_taps must be 1 or 3; got {self.depthwise_taps}")
        if self.down_kernel not in (2, 4):
            raise DiqpError(f"down_kernel must be 2 or 4; got {self.down_kernel}")

    @property
    def levels(self) -> int:
        """Encoder levels, without the bottleneck."""
        return len(self.depths) // 2

    @property
    def seen(self) -> int:
        """Frames that every frame is seen beside (`vsdiqp.alignment.seen_steps`)."""
        return 2 * self.neighbours + bool(self.first_pass)

    @property
    def token_frames(self) -> int:
        """Frames that a token of the U carries."""
        return FRAMES if self.joint else 1

    def width(self, level: int) -> int:
        """Channels a frame at a level of the encoder; ``level == levels`` is the bottleneck."""
        return self.widths[level] if self.widths else self.embed_dim * 2**level

    def stage_channels(self, index: int) -> int:
        """Channels of a token (all its frames) in a stage: encoder levels, bottleneck, decoder levels from below."""
        level = index if index <= self.levels else 2 * self.levels - index
        doubled = 2 if index > self.levels and self.skip == "concat" else 1
        return self.token_frames * doubled * self.width(level)

    @property
    def multiple(self) -> int:
        """Tile sides must be multiples of this: a whole number of windows at every level that has blocks."""
        return self.stem_scale * 2**self.levels * self.window

    @property
    def align(self) -> int:
        """Tile positions should be multiples of this, so that the coding grid keeps its phase."""
        return 64 if self.stem_scale > 1 else 8

    @property
    def max_size(self) -> tuple[int, int] | None:
        """Largest frame (width, height) that the location tables know; None without tables."""
        return (self.table_rows[2], self.table_rows[3]) if self.location == "tables" else None

    @property
    def guide_size(self) -> tuple[int, int] | None:
        """Height and width of the thumbnails; None means the size of the tile."""
        return None

    @property
    def uses_around(self) -> bool:
        """Whether Look Around reads thumbnails of the frames around."""
        return bool(self.look_around)

    @property
    def uses_ahead(self) -> bool:
        """Whether Look Ahead reads the look-ahead frame; without it no frame beyond the group is needed."""
        return bool(self.look_ahead)

    @property
    def look_ahead_frames(self) -> int:
        """T as the frame window needs it: 0 when the network does not look ahead."""
        return self.frames_ahead if self.uses_ahead else 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that `from_dict` reads back."""
        values = asdict(self)
        values["qp_range"] = {codec: list(limits) for codec, limits in self.qp_range.items()}
        for name in ("trust", "chroma_trust"):
            if values[name]:
                values[name] = {codec: [list(point) for point in points] for codec, points in values[name].items()}
            else:
                del values[name]  # older versions read what has none
        if not self.neighbours:
            del values["neighbours"]
        if not self.first_pass:
            del values["first_pass"]
        if self.joint:
            del values["joint"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DiQPConfig":
        """Build from `to_dict`'s result. Raises DiqpError naming keys that this version does not know."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise DiqpError(
                f"the checkpoint describes a network with {', '.join(unknown)}, which this version of vsdiqp does not "
                f"know; update vsdiqp, or use a checkpoint made with this version"
            )
        cleaned: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if "qp_range" in cleaned:
            cleaned["qp_range"] = {c: (int(r[0]), int(r[1])) for c, r in dict(cleaned["qp_range"]).items()}
        for name in {"trust", "chroma_trust"} & cleaned.keys():
            cleaned[name] = {
                codec: tuple((float(qp), float(share)) for qp, share in points)
                for codec, points in dict(cleaned[name]).items()
            }
        return cls(**cleaned)
