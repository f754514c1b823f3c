"""Before, after and source side by side, with zoomed crops where the restoration changed most."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.metrics import SSIM_WINDOW, Picture, psnr, ssim
from vsdiqp.evaluation.video import Node, open_video, plane, rgb_picture, settle_colour, to_rgb


@dataclass(frozen=True, slots=True)
class Still:
    """One frame: RGB (3, rows, columns) of range 0..1, and its luma of range 1."""

    rgb: Picture
    luma: Picture
    """The clip's own, in the range of its codes; of an RGB picture BT.709's."""
    is_rgb: bool = False

    @classmethod
    def of(cls, clip: Node, frame: int, like: Node | None = None) -> "Still":
        """Frame number `frame` of a clip, read by the matrix and range of `like` (default: its own).

        Raises DiqpError where the clip is too short.
        """
        if not 0 <= frame < clip.num_frames:
            raise DiqpError(f"there is no frame {frame}; the clip has frames 0 to {clip.num_frames - 1}")
        clip = settle_colour(clip, like)
        rgb = rgb_picture(to_rgb(clip[frame]).get_frame(0))
        if clip.format.num_planes == 3 and clip.format.color_family.name == "RGB":
            return cls(rgb, bt709_luma(rgb), is_rgb=True)
        return cls(rgb, plane(clip.get_frame(frame), 0))


def bt709_luma(rgb: Picture) -> Picture:
    """Full-range luma (rows, columns) of R'G'B' (3, rows, columns)."""
    luma: Picture = np.tensordot(np.array([0.2126, 0.7152, 0.0722], np.float32), rgb, 1)
    return luma


@dataclass(frozen=True, slots=True)
class Metrics:
    """A picture against the source: dB, SSIM, dB."""

    y_psnr: float
    y_ssim: float
    rgb_psnr: float

    def __str__(self) -> str:
        """As printed and drawn."""
        return f"Y {self.y_psnr:.2f} dB, SSIM {self.y_ssim:.4f}, RGB {self.rgb_psnr:.2f} dB"


def measure(picture: Still, source: Still) -> Metrics:
    """Metrics of one frame in the conventions of `vsdiqp.evaluation.metrics`."""
    rgb = float(np.mean([psnr(a, b) for a, b in zip(picture.rgb, source.rgb, strict=True)]))
    return Metrics(psnr(picture.luma, source.luma), ssim(picture.luma, source.luma), rgb)


def liveliest(change: Picture, side: int, count: int) -> list[tuple[int, int]]:
    """(top, left) of up to `count` squares, disjoint and inside the picture, with the largest sums of `change`."""
    rows, columns = change.shape
    side = min(side, rows, columns)
    table = np.zeros((rows + 1, columns + 1))
    table[1:, 1:] = change.astype(np.float64).cumsum(0).cumsum(1)
    sums = table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    places: list[tuple[int, int]] = []
    while len(places) < count and np.isfinite(sums.max()):
        top, left = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
        places.append((top, left))
        sums[max(0, top - side + 1) : top + side, max(0, left - side + 1) : left + side] = -np.inf
    return places


def compare(
    paths: Sequence[str | Path], out: str | Path, frame: int = 0, crop: int = 96, crops: int = 3
) -> list[Metrics]:
    """Draws a frame of the files before, after and (optionally) source into a PNG.

    All YUV files are read by one matrix and range: the source's; without a YUV source, those of the first such file.
    Returns the metrics of before and after where there is a source. Raises DiqpError for files that cannot be read or
    whose sizes differ.
    """
    clips = [open_video(path) for path in paths]
    # Files on the way to and from a filter often lose what their source says; samples stay what they are.
    leaders = [clip for clip in (*clips[2:], *clips) if clip.format.color_family.name != "RGB"]
    stills = [Still.of(clip, frame, like=leaders[0] if leaders else None) for clip in clips]
    sizes = [still.luma.shape for still in stills]
    if len(set(sizes)) != 1:
        listed = ", ".join(f"{path} {columns}x{rows}" for path, (rows, columns) in zip(paths, sizes, strict=True))
        raise DiqpError(f"the pictures differ in size: {listed}")
    if len(stills) > 2 and min(sizes[0]) < SSIM_WINDOW:
        rows, columns = sizes[0]
        raise DiqpError(
            f"the pictures are {columns}x{rows}; against a source they must be {SSIM_WINDOW}x{SSIM_WINDOW} or larger"
        )
    if len({still.is_rgb for still in stills}) > 1:  # luma of one scale for all
        stills = [dataclasses.replace(still, luma=bt709_luma(still.rgb)) for still in stills]
    return draw(stills, out, crop, crops)


def draw(stills: Sequence[Still], out: str | Path, crop: int = 96, crops: int = 3) -> list[Metrics]:
    """As `compare`, of frames already read: before, after and optionally source."""
    before, after, *rest = stills
    metrics = [measure(picture, rest[0]) for picture in (before, after)] if rest else []
    titles = ["before", "after", "source"]
    for i, values in enumerate(metrics):
        titles[i] += f"\n{values}"
    places = liveliest(np.abs(after.luma - before.luma), crop, crops)
    _figure(stills, titles, places, min(crop, *before.luma.shape), Path(out))
    return metrics


def _figure(
    stills: Sequence[Still], titles: Sequence[str], places: Sequence[tuple[int, int]], side: int, out: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    rows, columns = stills[0].luma.shape
    width = 5.0
    heights = [width * rows / columns, *[width] * len(places)]
    figure, axes = pyplot.subplots(
        len(heights),
        len(stills),
        figsize=(width * len(stills), sum(heights) + 0.6),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for column, (still, title) in enumerate(zip(stills, titles, strict=False)):
        _show(axes[0][column], still.rgb)
        axes[0][column].set_title(title, fontsize=10)
        for row, (top, left) in enumerate(places, 1):
            _show(axes[row][column], still.rgb[:, top : top + side, left : left + side])
            mark = Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor="yellow", linewidth=1)
            axes[0][column].add_patch(mark)
    figure.savefig(out, dpi=110, format="png")
    pyplot.close(figure)


def _show(panel: Any, rgb: Picture) -> None:
    pixels: NDArray[np.uint8] = np.floor(rgb.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
    panel.imshow(pixels, interpolation="nearest")
    panel.set_axis_off()
