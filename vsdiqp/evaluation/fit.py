"""The closed-form reference on training pools: fitted on one, tried on another."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.closed_form import ClosedForm, Fitter, Sample, correct
from vsdiqp.evaluation.metrics import Picture, psnr

Progress = Callable[[int, int, str], None]

_UNHARMED = 60.0  # dB


def samples(folder: str | Path, per_item: int = 1, progress: Progress | None = None) -> Iterator[Sample]:
    """Frames of a pool that ``vsdiqp pool`` made, `per_item` from each encode at constant QP with usual offsets.

    Which frames is spread evenly over the clips; their neighbours are real ones, on this side of any scene cut.
    """
    from vsdiqp.training.degrade import decode
    from vsdiqp.training.pool import read_index, read_stream

    folder = Path(folder)
    entries = read_index(folder)
    if not entries:
        raise DiqpError(f"no pool in {folder}; make one with vsdiqp pool")
    for number, entry in enumerate(entries):
        if progress:
            progress(number, len(entries), "closed form")
        middles = _middles(entry["frames"], entry["cuts"], per_item, number)
        if not middles:
            continue
        one = np.float32(255 << (entry["bits"] - 8))
        source = decode(read_stream(folder, entry, entry["source"])).y
        for encode in entry["degraded"]:
            # Rate factors and flat quantisers put another amount of damage under the same number.
            if encode["mode"] != "cqp" or encode["flat"]:
                continue
            luma = decode(read_stream(folder, entry, encode["stream"]), encode["first"], entry["frames"]).y
            for n in middles:
                before, current, after = (frame.astype(np.float32) / one for frame in luma[n - 1 : n + 2])
                yield Sample(encode["codec"], encode["qp"], before, current, after, source[n].astype(np.float32) / one)


def fit_on_pool(folder: str | Path, progress: Progress | None = None, per_item: int = 1) -> ClosedForm:
    """Filters for all codecs of a pool. Raises DiqpError where it holds nothing to fit on."""
    fitter = Fitter()
    for sample in samples(folder, per_item, progress):
        fitter.add(sample)
    counts = ", ".join(f"{count} {codec}" for codec, count in fitter.frames.items() if count)
    return fitter.solve(f"fitted on {counts} frames of a training pool")


def gains_on_pool(
    restorer: ClosedForm, folder: str | Path, per_item: int = 1, progress: Progress | None = None
) -> dict[tuple[str, float], tuple[float, float, int]]:
    """(codec, QP) to the mean and the smallest gain in luma PSNR, dB, over a pool's frames, and their number.

    Frames that came through (nearly) unharmed are left out: whatever is done to a blank frame costs tens of dB.
    """
    gains: dict[tuple[str, float], list[float]] = {}
    for s in samples(folder, per_item, progress):
        before = psnr(s.current, s.source)
        if before >= _UNHARMED:
            continue
        restored = _rounded(correct(restorer.at(s.codec, s.qp), s.before, s.current, s.after))
        gains.setdefault((s.codec, s.qp), []).append(psnr(restored, s.source) - before)
    return {point: (float(np.mean(g)), min(g), len(g)) for point, g in sorted(gains.items())}


def _rounded(picture: Picture) -> Picture:
    """What an 8-bit file would keep of it; a finer one keeps a little more."""
    steps: Picture = np.clip(np.floor(picture * np.float32(255) + np.float32(0.5)), 0, 255)
    return steps / np.float32(255)


def _middles(frames: int, cuts: list[int], count: int, offset: int) -> list[int]:
    """Up to `count` frames that have both neighbours in their own scene, evenly spread and shifted by `offset`."""
    fit = [n for n in range(1, frames - 1) if n not in cuts and n + 1 not in cuts]
    if not fit:
        return []
    return sorted({fit[(offset + i * len(fit) // count) % len(fit)] for i in range(count)})
