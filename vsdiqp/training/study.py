"""Two studies that shape a network: how far ahead to look, and which sizes are worth their cost."""

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vsdiqp.errors import DiqpError
from vsdiqp.training.degrade import plane_array
from vsdiqp.training.settings import TrainSettings

Picture = NDArray[Any]


# -- how far ahead -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Differences:
    """Mean absolute luma differences of one clip, in 8-bit steps; index T - 1 holds frames T apart."""

    clip: str
    values: tuple[float, ...]


_PLANAR_LUMA = re.compile(r"(yuvj?4\d\dp|yuva4\d\dp|gray)((9|10|12|14|16)le)?|nv(12|16|21|24)")
"""FFmpeg's names of formats whose first plane is luma in the lowest bits of its samples."""


def luma_frames(path: Path, limit: int) -> Iterator[Picture]:
    """Luma of up to ``limit`` frames in 8-bit steps (deeper samples keep their fraction), rows x columns.

    Raises DiqpError for what FFmpeg does not open, and where frames differ in size.
    """
    size: tuple[int, int] | None = None
    try:
        # Absolute: of "a:b.mkv" FFmpeg would take "a" for a protocol.
        with av.open(str(path.absolute())) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index == limit:
                    return
                if frame.format.is_rgb:
                    frame = frame.reformat(format="gray")
                elif not _PLANAR_LUMA.fullmatch(frame.format.name):  # packed, as yuyv422
                    deep = frame.format.components[0].bits > 8
                    frame = frame.reformat(format="yuv444p16le" if deep else "yuv444p")
                if size not in (None, (frame.width, frame.height)):
                    raise DiqpError(f"the frames of {path} differ in size; give a clip in which all are alike")
                size = frame.width, frame.height
                bits = frame.format.components[0].bits
                samples = plane_array(frame.planes[0], bits)
                yield samples if bits == 8 else samples.astype(np.float32) / (1 << (bits - 8))
    except (OSError, IndexError, av.FFmpegError) as error:
        raise DiqpError(f"{path} can't be read as a video ({error}); give a file that FFmpeg opens") from None


def frame_differences(clip: str, frames: Iterator[Picture], furthest: int) -> Differences:
    """How much frames T apart differ, T = 1..``furthest``, or as far as the clip goes (paper, figure 4).

    The figure asks it of frame n+1 and its look-ahead frame n+1+T; every frame of the clip serves as n+1. Raises
    DiqpError for a clip of one frame.
    """
    sums, counts = np.zeros(furthest), np.zeros(furthest, int)
    seen: deque[Picture] = deque(maxlen=furthest)
    for frame in frames:
        for distance, earlier in enumerate(reversed(seen)):
            sums[distance] += np.abs(np.subtract(frame, earlier, dtype=np.float32)).mean(dtype=np.float64)
            counts[distance] += 1
        seen.append(frame)
    known = counts > 0
    if not known.any():
        raise DiqpError(f"{clip} has fewer than two frames; give a longer clip")
    return Differences(clip, tuple((sums[known] / counts[known]).tolist()))


def write_differences(results: Sequence[Differences], out: Path) -> list[Path]:
    """``look-ahead.csv`` (clip, T, difference) and ``look-ahead.png`` in ``out``; returns their paths."""
    from matplotlib.figure import Figure

    from vsdiqp.labels import plotted, shown

    out.mkdir(parents=True, exist_ok=True)
    table, picture = out / "look-ahead.csv", out / "look-ahead.png"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "T", "mean absolute difference"])
        for result in results:
            writer.writerows([shown(result.clip), t, f"{value:.4f}"] for t, value in enumerate(result.values, 1))
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.add_subplot()
    for result in results:
        panel.plot(range(1, len(result.values) + 1), result.values, label=plotted(result.clip), linewidth=1)
    panel.set(
        xlabel="T, frames between frame n+1 and its look-ahead frame",
        ylabel="mean absolute luma difference, 8-bit steps",
    )
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    if len(results) <= 20:
        panel.legend(fontsize="x-small")
    figure.savefig(picture, dpi=120)
    return [table, picture]


# -- which sizes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """What one configuration came to within the budget."""

    name: str
    kmac: float
    """Thousands of multiply-accumulates a pixel and frame."""
    parameters: int
    steps: int
    seconds: float
    """Training time."""
    gain: float
    """Mean Y-PSNR gain over the validation pool, dB."""
    worst: float
    """Of single streams."""


def train_shape(name: str, settings: TrainSettings, items: int = 0) -> Shape:
    """Train one configuration (or go on where it was stopped) and validate its averaged weights.

    items: how many validation items to use; 0 takes all. Raises DiqpError without a validation pool.
    """
    from vsdiqp.network.cost import kmac, parameters
    from vsdiqp.training.first_pass import open_pool
    from vsdiqp.training.loop import Trainer
    from vsdiqp.training.validation import validate

    if not settings.validation:
        raise DiqpError("shapes are compared on a validation pool: give --validation FOLDER")
    network = settings.network
    pool = open_pool(settings.validation, network, "nominal")
    # What is compared is measured once, at the end; validation on the way would cost time and change nothing.
    trainer = Trainer(replace(settings, validation=""))
    trainer.run()
    result = validate(trainer.average.network, pool, trainer.device, settings.precision, items)
    return Shape(
        name, kmac(network), parameters(network), trainer.step, trainer.seconds, result["mean"], result["worst"]
    )


def compare_shapes(
    runs: Sequence[tuple[str, TrainSettings]], out: Path, items: int = 0, say: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Train every configuration for its budget; ``shapes.csv`` and ``shapes.md`` in ``out`` grow with each.

    Every run keeps its state in a folder of its own below ``out``, so an interrupted study goes on where it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    shapes: list[Shape] = []
    paths = [out / "shapes.csv", out / "shapes.md"]
    for name, settings in runs:
        say(f"{name}: {settings.steps} steps")
        shapes.append(train_shape(name, replace(settings, out=str(out / name)), items))
        rows = sorted(shapes, key=lambda shape: shape.kmac)
        with paths[0].open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "kmac", "parameters", "steps", "seconds", "gain", "worst"])
            for s in rows:
                writer.writerow(
                    [
                        s.name,
                        f"{s.kmac:.2f}",
                        s.parameters,
                        s.steps,
                        round(s.seconds),
                        f"{s.gain:.4f}",
                        f"{s.worst:.4f}",
                    ]
                )
        paths[1].write_text(shapes_to_markdown(rows), encoding="utf-8")
    return paths


def shapes_to_markdown(shapes: Sequence[Shape]) -> str:
    """A table, a line a configuration."""
    from vsdiqp.evaluation.report import rows_to_markdown

    head = ["configuration", "kMAC a pixel and frame", "parameters", "steps", "minutes", "gain, dB", "worst stream, dB"]
    rows = []
    for s in shapes:
        cost = [f"{s.kmac:.1f}", f"{s.parameters:,}", str(s.steps), f"{s.seconds / 60:.1f}"]
        rows.append([s.name, *cost, f"{s.gain:+.3f}", f"{s.worst:+.3f}"])
    return rows_to_markdown(head, rows) + "\n"
