"""What users have today without downloads: VapourSynth's own and PyPI's classic filters, each at its best per QP.

Only luma is filtered: what is judged is luma, and a classic filter that leaves chroma alone cannot make it worse.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.metrics import psnr
from vsdiqp.evaluation.video import Node, core, lockstep, plane

Parameters = dict[str, float]

SHIPPED = Path(__file__).with_name("classics.json")
"""Best settings by filter, codec and QP; made by ``vsdiqp evaluate --tune-classics``."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A classic filter and the settings worth trying."""

    build: Callable[..., Node]
    """Called with the clip and one value for each name of `grid`."""
    grid: dict[str, tuple[float, ...]]
    plugin: str
    """Namespace in the core."""
    package: str
    """What to install from PyPI; empty for the core's own."""

    def settings(self) -> Iterator[Parameters]:
        """All combinations of the grid."""
        for values in product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def apply(self, clip: Node, parameters: Parameters) -> Node:
        """Raises DiqpError naming the pip command where the plugin is missing."""
        if not hasattr(core(), self.plugin):
            raise DiqpError(f"the plugin {self.plugin} is missing; install it with: pip install {self.package}")
        return self.build(clip, **parameters)


def _deblock(clip: Node, quant: float, offset: float) -> Node:
    return core().deblock.Deblock(clip, quant=int(quant), aoffset=int(offset), boffset=int(offset), planes=[0])


def _smooth(clip: Node, amount: float) -> Node:
    blurred = core().std.Convolution(clip, [1, 2, 1, 2, 4, 2, 1, 2, 1], planes=[0])
    return core().std.Merge(clip, blurred, [amount, 0.0])


def _temporal_soften(clip: Node, threshold: float, radius: float) -> Node:
    return core().zsmooth.TemporalSoften(clip, radius=int(radius), threshold=[threshold], scalep=1, planes=[0])


def _flux_smooth(clip: Node, temporal: float, spatial: float) -> Node:
    return core().zsmooth.FluxSmoothST(
        clip, temporal_threshold=[temporal], spatial_threshold=[spatial], scalep=1, planes=[0]
    )


def _mdegrain(clip: Node, thsad: float, radius: float) -> Node:
    mv = core().mv
    vectors_from = mv.Super(clip, pel=2)
    vectors = [
        mv.Analyse(vectors_from, isb=backward, delta=delta, blksize=16, overlap=8, search=5, searchparam=4)
        for delta in range(1, int(radius) + 1)
        for backward in (1, 0)
    ]
    degrain = getattr(mv, f"Degrain{int(radius)}")
    return degrain(clip, vectors_from, *vectors, thsad=int(thsad), plane=0)


def _bm3d(clip: Node, sigma: float) -> Node:
    import vapoursynth

    luma = core().std.ShufflePlanes(clip, 0, vapoursynth.GRAY)
    deep = core().resize.Point(luma, format=vapoursynth.GRAYS)
    clean = core().bm3d.VBasic(deep, sigma=[sigma], radius=1, profile="fast", matrix=100)
    clean = core().bm3d.VAggregate(clean, radius=1, sample=1)
    flat = core().resize.Point(clean, format=luma.format.id)
    return core().std.ShufflePlanes([flat, clip, clip], [0, 1, 2], vapoursynth.YUV)


def _bilateral(clip: Node, spatial: float, tonal: float) -> Node:
    return core().vszip.Bilateral(clip, sigmaS=[spatial], sigmaR=[tonal], planes=[0])


FILTERS: dict[str, Filter] = {
    "smooth": Filter(_smooth, {"amount": (0.05, 0.1, 0.2, 0.4)}, "std", ""),
    "deblock": Filter(
        _deblock, {"quant": (8, 12, 16, 20, 24, 28, 32, 38), "offset": (0, 6, 12)}, "deblock", "vapoursynth-deblock"
    ),
    "mdegrain": Filter(
        _mdegrain, {"thsad": (50, 100, 200, 400, 800, 1600), "radius": (1, 2, 3, 4, 6)}, "mv", "vapoursynth-mvtools"
    ),
    "temporalsoften": Filter(
        _temporal_soften, {"threshold": (1, 2, 3, 5), "radius": (1, 2)}, "zsmooth", "vapoursynth-zsmooth"
    ),
    "fluxsmooth": Filter(
        _flux_smooth, {"temporal": (-1, 2, 4, 7), "spatial": (-1, 2, 4, 7)}, "zsmooth", "vapoursynth-zsmooth"
    ),
    "bilateral": Filter(
        _bilateral, {"spatial": (0.5, 0.7, 1.2), "tonal": (0.005, 0.01, 0.02, 0.04, 0.08)}, "vszip", "vapoursynth-vszip"
    ),
    "bm3d": Filter(_bm3d, {"sigma": (0.5, 1.0, 2.0, 4.0, 6.0, 9.0)}, "bm3d", "vapoursynth-bm3d"),
}


@dataclass(frozen=True, slots=True)
class Classic:
    """A classic filter with its tuned settings, as a method of ``vsdiqp evaluate``."""

    name: str
    table: dict[str, dict[float, Parameters]]
    """Codec to QP to settings; the nearest QP's are taken."""

    @property
    def key(self) -> str:
        """The settings themselves."""
        return f"{self.name} {self.table}"

    def restore(self, clip: Node, codec: str, qp: float) -> Node:
        """Raises DiqpError where the plugin is missing or the filter was not tuned for the codec."""
        points = self.table.get(codec)
        if not points:
            raise DiqpError(f"{self.name} has no settings for {codec}; make them with vsdiqp evaluate --tune-classics")
        nearest = min(points, key=lambda tuned_at: abs(tuned_at - qp))
        return FILTERS[self.name].apply(clip, points[nearest])


def tuned(name: str, path: Path = SHIPPED) -> Classic:
    """A filter with the best settings from a file that `save_table` wrote."""
    if not path.is_file():
        raise DiqpError(f"no settings of classic filters at {path}; make them with vsdiqp evaluate --tune-classics")
    table = json.loads(path.read_text())["settings"].get(name, {})
    return Classic(name, {codec: {float(qp): s for qp, s in points.items()} for codec, points in table.items()})


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best settings of one filter at one QP, and what they gain."""

    filter: str
    codec: str
    qp: float
    parameters: Parameters
    gain: float
    """dB of luma PSNR over the input, mean over clips."""


def tune(name: str, codec: str, qp: float, pairs: Sequence[tuple[Node, Node]], frames: int = 12) -> Tuned:
    """The settings with the largest mean gain over clips, given as pairs of (source, decoded).

    At most `frames` frames of each clip are looked at, from its third of time on, so that temporal filters have
    neighbours and the first intra frame does not count twice.
    """
    classic = FILTERS[name]
    clips = [(source, decoded, _window(source.num_frames, frames)) for source, decoded in pairs]
    before = [_mean_psnr(source, decoded, where) for source, decoded, where in clips]
    best = Tuned(name, codec, qp, {}, float("-inf"))
    for parameters in classic.settings():
        gains = [
            _mean_psnr(source, classic.apply(decoded, parameters), where) - start
            for (source, decoded, where), start in zip(clips, before, strict=True)
        ]
        if (gain := float(np.mean(gains))) > best.gain:
            best = Tuned(name, codec, qp, parameters, gain)
    return best


def save_table(results: Sequence[Tuned], path: Path, origin: str) -> None:
    """Writes tuned settings for `tuned` to read."""
    settings: dict[str, Any] = {}
    for r in results:
        settings.setdefault(r.filter, {}).setdefault(r.codec, {})[f"{r.qp:g}"] = r.parameters
    path.write_text(json.dumps({"origin": origin, "settings": settings}, indent=1) + "\n")


def _window(total: int, frames: int) -> slice:
    start = min(total // 3, max(0, total - frames))
    return slice(start, start + frames)


def _mean_psnr(source: Node, picture: Node, where: slice) -> float:
    return float(np.mean([psnr(plane(b, 0), plane(a, 0)) for a, b in lockstep(source[where], picture[where])]))
