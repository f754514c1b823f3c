"""How the QP in a frame's header relates to the damage in the frame, and which QP serves the filter best.

With adaptive quantisation an encoder changes the QP from block to block, and only the header's is easy to read.

    python scripts/measure_qp_offset.py relation [CLIP ...] --encoder x265 --table relation.md
    python scripts/measure_qp_offset.py restore [CLIP ...] --model lite --table restore.md

``relation`` encodes each clip over rate factors, presets and kinds of adaptive quantisation, and compares three QPs of
every frame: the header's; the mean over blocks, from x265's own log; and the equal-damage QP, which is the one at which
an encode without adaptive quantisation has the same mean squared luma error.

``mapping`` does so for codecs whose quantiser is put on HEVC's or AV1's scale.

``restore`` filters such encodes with ``core.diqp.Restore`` at several ``qp_offset`` and gives the PSNR gained by each;
``foreign`` does so for the codecs of ``mapping``.

Clips are anything FFmpeg reads, best lossless; without any, camera pans over scikit-image's photographs are used. A
clip is cropped to its middle and played forth and back to get enough frames.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vsdiqp.codecs import probe

Pictures = list[NDArray[np.uint8]]
"""4:2:0 frames as FFmpeg's packed planes: [height * 3 / 2, width]."""

_RATE = 24
_LOG_FLOOR = 1e-6


@dataclass(frozen=True)
class Encoder:
    """How an encoder is driven, and what is tried with it."""

    name: str
    params: str
    """Name of the option that carries its parameters."""
    quiet: str
    constant: tuple[str, ...]
    """Parameters that give every block of a frame the header's QP, over the range of QPs."""
    factors: tuple[str, ...]
    """Parameters of rate control by constant quality."""
    cases: tuple[tuple[str, str], ...]
    """Preset and what is changed of it; the first is the one that ``constant`` uses and ``restore`` tries."""
    logs_blocks: bool


_ENCODERS = {
    "x265": Encoder(
        "libx265",
        "x265-params",
        "log-level=none:pools=none:frame-threads=1",
        tuple(f"qp={qp}" for qp in range(14, 50, 4)),
        ("crf=18", "crf=23", "crf=28", "crf=33"),
        (
            ("medium", ""),
            ("fast", ""),
            ("slow", ""),
            ("medium", "aq-mode=0"),
            ("medium", "aq-mode=0:cutree=0"),
            ("medium", "cutree=0"),
            ("medium", "aq-mode=1"),
            ("medium", "aq-mode=3"),
            ("medium", "aq-mode=4"),
        ),
        logs_blocks=True,
    ),
    "svt-av1": Encoder(
        "libsvtav1",
        "svtav1-params",
        "lp=1",
        tuple(f"aq-mode=0:crf={factor}" for factor in (8, 16, 24, 32, 40, 48, 56, 63)),
        ("crf=25", "crf=35", "crf=45", "crf=55"),
        (("8", ""), ("6", ""), ("8", "aq-mode=0"), ("8", "aq-mode=1"), ("8", "enable-variance-boost=1")),
        logs_blocks=False,
    ),
}
"""x265's defaults are aq-mode 2 with cutree, SVT-AV1's aq-mode 2, which is its kind of cutree."""


_FOREIGN: dict[str, tuple[str, str, tuple[dict[str, str], ...]]] = {
    "H.264": ("libx264", "x265", tuple({"qp": str(qp)} for qp in (22, 28, 34, 40))),
    "VP9": (
        "libvpx-vp9",
        "svt-av1",
        tuple({"crf": str(q), "qmin": str(q), "qmax": str(q), "b": "0"} for q in (20, 30, 40, 50)),
    ),
    "MPEG-2": ("mpeg2video", "x265", tuple({"qmin": str(q), "qmax": str(q), "bf": "2"} for q in (2, 4, 8, 16))),
    "MPEG-4": ("mpeg4", "x265", tuple({"qmin": str(q), "qmax": str(q), "bf": "2"} for q in (2, 4, 8, 16))),
}
"""Codec to its encoder, the encoder of the scale its QP is put on, and the options tried."""


@dataclass(frozen=True)
class Encode:
    """One stream with what its encoder logged, by frame in presentation order."""

    path: Path
    header: NDArray[np.float64]
    blocks: NDArray[np.float64]
    """Mean block QP."""
    kinds: str
    log_error: NDArray[np.float64]
    """log2 of the mean squared luma error."""


def encode(pictures: Pictures, folder: Path, encoder: Encoder, preset: str, params: str) -> Encode:
    """Encode ``pictures`` and measure the result."""
    path, log = folder / "clip.mkv", folder / "log"
    log.unlink(missing_ok=True)
    logged = f"pass=1:slow-firstpass=1:stats={log}" if encoder.logs_blocks else ""
    joined = ":".join(filter(None, (params, logged, encoder.quiet)))
    write_stream(path, pictures, encoder.name, {"preset": preset, encoder.params: joined})
    done = measure(path, pictures)
    # At constant QP x265 logs nothing, and all blocks use the header's.
    return replace(done, blocks=read_log(log)) if log.exists() else done


def measure(path: Path, pictures: Pictures) -> Encode:
    """Return the QPs of the stream ``path`` and its difference from ``pictures``."""
    scan = probe(path, use_cache=False)
    qps = np.array(scan.qps, np.float64)
    error = [
        np.mean((np.subtract(decoded, picture, dtype=np.float64)[: picture.shape[0] * 2 // 3]) ** 2)
        for decoded, picture in zip(decode(path), pictures, strict=True)
    ]
    kinds = "".join(frame.kind for frame in scan.frames).upper()
    return Encode(path, qps, qps, kinds, np.log2(np.maximum(error, _LOG_FLOOR)))


def write_stream(path: Path, pictures: Pictures, encoder: str, options: dict[str, str]) -> None:
    """Encode ``pictures``; x265 completes its log when the encoder is freed, at the end of this function."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=_RATE, options=options)
        stream.height, stream.width = pictures[0].shape[0] * 2 // 3, pictures[0].shape[1]
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, _RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_log(log: Path) -> NDArray[np.float64]:
    """Return the mean block QP of every frame, in presentation order, from x265's statistics of a first pass."""
    lines = (dict(part.split(":", 1) for part in line.split() if ":" in part) for line in log.read_text().splitlines())
    logged = sorted((int(fields["in"]), float(fields["q-aq"])) for fields in lines if "q-aq" in fields)
    return np.array([qp for _, qp in logged])


def decode(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of ``path`` as 8-bit 4:2:0."""
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            yield frame.to_ndarray(format="yuv420p")


def equal_damage(frame: Encode, constant: list[Encode]) -> NDArray[np.float64]:
    """For every frame the header QP at which the encodes of ``constant``, interpolated, have its error."""
    header = np.array([one.header for one in constant])
    error = np.array([one.log_error for one in constant])
    found = []
    for number, wanted in enumerate(frame.log_error):
        rising = np.maximum.accumulate(error[:, number])
        found.append(np.interp(wanted, rising, header[:, number], left=np.nan, right=np.nan))
    return np.array(found)


def load(source: Path | str, frames: int, width: int, height: int) -> Pictures:
    """Return ``frames`` pictures of a clip, or of a pan over one of scikit-image's photographs (given by name)."""
    if isinstance(source, Path):
        whole = [crop(picture, width, height) for picture in decode(source)]
    else:
        whole = list(pan(source, frames, width, height))
    there_and_back = whole + whole[-2:0:-1]
    return [there_and_back[number % len(there_and_back)] for number in range(frames)]


def crop(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return the middle of a packed 4:2:0 picture."""
    full_width, full_height = picture.shape[1], picture.shape[0] * 2 // 3
    width, height = min(width, full_width) & ~15, min(height, full_height) & ~15
    left, top = (full_width - width) // 4 * 2, (full_height - height) // 4 * 2
    luma = picture[:full_height][top : top + height, left : left + width]
    chroma = picture[full_height:].reshape(2, full_height // 2, full_width // 2)
    chroma = chroma[:, top // 2 : (top + height) // 2, left // 2 : (left + width) // 2]
    return np.concatenate([luma, chroma.reshape(height // 2, width)])


def pan(photograph: str, frames: int, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """Yield a slow camera move with subpixel steps over a photograph of scikit-image."""
    from scipy.ndimage import map_coordinates
    from skimage import data

    image = getattr(data, photograph)()
    image = np.stack([image] * 3, -1) if image.ndim == 2 else image[..., :3]
    rows, columns = image.shape[0], image.shape[1]
    height, width = min(height, rows - 24) & ~15, min(width, columns - 24) & ~15
    for number in range(frames):
        y, x = np.mgrid[:height, :width] + np.array([0.31, 0.43])[:, None, None] * number
        moved = np.stack([map_coordinates(image[..., c], (y, x), order=3, mode="nearest") for c in range(3)], -1)
        yield av.VideoFrame.from_ndarray(np.ascontiguousarray(moved), "rgb24").to_ndarray(format="yuv420p")


def relation(
    clips: list[Path | str], encoder: Encoder, frames: int, width: int, height: int, folder: Path
) -> Iterator[str]:
    """Yield a Markdown table: a line for each preset, kind of adaptive quantisation and rate factor."""
    gathered: dict[tuple[str, str, str], list[tuple[Encode, NDArray[np.float64]]]] = {}
    for clip in clips:
        pictures = load(clip, frames, width, height)
        constant = [encode(pictures, folder, encoder, encoder.cases[0][0], params) for params in encoder.constant]
        for preset, more in encoder.cases:
            for factor in encoder.factors:
                done = encode(pictures, folder, encoder, preset, f"{factor}:{more}" if more else factor)
                gathered.setdefault((preset, more, factor), []).append((done, equal_damage(done, constant)))
        print(f"measured {clip}", file=sys.stderr)
    yield "| preset | changed | rate | header | blocks - header | equal damage - header | I | P | B | by clip |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for (preset, more, factor), encodes in gathered.items():
        header = np.concatenate([one.header for one, _ in encodes])
        blocks = np.concatenate([one.blocks for one, _ in encodes]) - header
        damage = np.concatenate([equal for _, equal in encodes]) - header
        kinds = np.array(list("".join(one.kinds for one, _ in encodes)))
        by_kind = " | ".join(_signed(damage[kinds == kind]) for kind in "IPB")
        by_clip = ", ".join(_signed(equal - one.header) for one, equal in encodes)
        yield (
            f"| {preset} | {more or 'defaults'} | {factor} | {header.mean():.1f} | "
            f"{_signed(blocks) if encoder.logs_blocks else '-'} | {_signed(damage)} | {by_kind} | {by_clip} |"
        )


def mapping(
    clips: list[Path | str], encoder: Encoder, frames: int, width: int, height: int, folder: Path
) -> Iterator[str]:
    """Yield a Markdown table of how far the QPs that other codecs are given lie from the equal-damage QP."""
    gathered: dict[tuple[str, int], list[tuple[Encode, NDArray[np.float64]]]] = {}
    for clip in clips:
        pictures = load(clip, frames, width, height)
        constant = {
            name: [encode(pictures, folder, one, one.cases[0][0], params) for params in one.constant]
            for name, one in _ENCODERS.items()
        }
        for codec, (foreign, scale, tried) in _FOREIGN.items():
            for number, options in enumerate(tried):
                path = folder / "clip.mkv"
                write_stream(path, pictures, foreign, {"cpu-used": "4", "threads": "1"} | options)
                done = measure(path, pictures)
                gathered.setdefault((codec, number), []).append((done, equal_damage(done, constant[scale])))
        print(f"measured {clip}", file=sys.stderr)
    yield "| codec | options | QP given | equal damage - given | by clip |"
    yield "|---|---|---|---|---|"
    for (codec, number), encodes in gathered.items():
        how = " ".join(f"{key}={value}" for key, value in _FOREIGN[codec][2][number].items())
        given = np.concatenate([one.header for one, _ in encodes])
        damage = np.concatenate([equal - one.header for one, equal in encodes])
        by_clip = ", ".join(_signed(equal - one.header) for one, equal in encodes)
        yield f"| {codec} | {how} | {given.mean():.1f} | {_signed(damage)} | {by_clip} |"


def restore(
    clips: list[Path | str],
    encoder: Encoder,
    frames: int,
    width: int,
    height: int,
    folder: Path,
    model: str,
    offsets: list[float],
) -> Iterator[str]:
    """Yield a Markdown table of the luma PSNR gained over the decoded frames at every offset, in dB."""
    yield "| clip | rate | PSNR | " + " | ".join(f"{offset:+g}" for offset in offsets) + " |"
    yield "|---|---|---|" + "---|" * len(offsets)
    everything: list[list[float]] = []
    for clip in clips:
        pictures = load(clip, frames, width, height)
        for factor in encoder.factors:
            done = encode(pictures, folder, encoder, encoder.cases[0][0], factor)
            before, gains = _gains(done.path, pictures, model, offsets)
            everything.append(gains)
            yield f"| {_name(clip)} | {factor} | {before:.2f} | {_best(gains)} |"
        print(f"measured {clip}", file=sys.stderr)
    yield f"| mean | | | {_best(np.mean(everything, 0).tolist())} |"


def foreign(
    clips: list[Path | str],
    encoder: Encoder,
    frames: int,
    width: int,
    height: int,
    folder: Path,
    model: str,
    offsets: list[float],
) -> Iterator[str]:
    """Yield the same for the codecs that have no network of their own: means over the clips, and the worst clip."""
    yield "| codec | options | PSNR | " + " | ".join(f"{offset:+g}" for offset in offsets) + " | worst clip |"
    yield "|---|---|---|" + "---|" * (len(offsets) + 1)
    loaded = [load(clip, frames, width, height) for clip in clips]
    for codec, (name, _, tried) in _FOREIGN.items():
        for options in tried:
            found = []
            for pictures in loaded:
                path = folder / "clip.mkv"
                write_stream(path, pictures, name, {"cpu-used": "4", "threads": "1"} | options)
                found.append(_gains(path, pictures, model, offsets))
            gains = np.array([gained for _, gained in found])
            worst = " / ".join(f"{value:+.3f}" for value in gains.min(0))
            how = " ".join(f"{key}={value}" for key, value in options.items())
            before = float(np.mean([psnr for psnr, _ in found]))
            yield f"| {codec} | {how} | {before:.2f} | {_best(gains.mean(0).tolist())} | {worst} |"
        print(f"measured {codec}", file=sys.stderr)


def _gains(path: Path, pictures: Pictures, model: str, offsets: list[float]) -> tuple[float, list[float]]:
    """Luma PSNR of a stream against its source, and what the filter adds to it at every offset."""
    import vapoursynth

    core: Any = vapoursynth.core
    luma_rows = pictures[0].shape[0] * 2 // 3
    source = core.diqp.ReadQP(core.bs.VideoSource(str(path), cachemode=0), str(path))

    def psnr(node: Any) -> float:
        errors = [
            np.mean((np.asarray(frame[0], np.float64) - picture[:luma_rows]) ** 2)
            for frame, picture in zip(node.frames(), pictures, strict=True)
        ]
        return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, _LOG_FLOOR))))

    before = psnr(source)
    return before, [psnr(core.diqp.Restore(source, model=model, qp_offset=offset)) - before for offset in offsets]


def _best(gains: list[float]) -> str:
    """Cells of a row, the best of them bold."""
    return " | ".join(f"**{gain:+.3f}**" if gain == max(gains) else f"{gain:+.3f}" for gain in gains)


def _name(clip: Path | str) -> str:
    return clip if isinstance(clip, str) else clip.stem


def _signed(values: NDArray[np.float64]) -> str:
    values = values[np.isfinite(values)]
    return f"{values.mean():+.1f}" if values.size else "-"


def clip_or_name(text: str) -> Path | str:
    """Return the path of a file, and anything else as it is."""
    return Path(text) if Path(text).exists() else text


def main() -> None:
    """Run the measurement that the command line asks for."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("measurement", choices=("relation", "mapping", "restore", "foreign"))
    parser.add_argument(
        "clips", type=clip_or_name, nargs="*", help="lossless clips, or names of scikit-image's photographs"
    )
    parser.add_argument("--encoder", choices=tuple(_ENCODERS), default="x265")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--size", default="384x224", metavar="WxH")
    parser.add_argument("--model", default="lite", help="of Restore")
    parser.add_argument("--offsets", type=float, nargs="+", default=[-8, -6, -4, -2, 0, 2, 4], help="qp_offset tried")
    parser.add_argument("--table", type=Path, help="where to write the table; default stdout")
    args = parser.parse_args()
    clips: list[Path | str] = args.clips or ["astronaut", "coffee", "chelsea", "camera"]
    width, height = (int(side) for side in args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        measurements: dict[str, Callable[..., Iterator[str]]] = {
            "relation": relation,
            "mapping": mapping,
            "restore": restore,
            "foreign": foreign,
        }
        measurement = measurements[args.measurement]
        more: tuple[Any, ...] = ()
        if args.measurement in ("restore", "foreign"):
            more = (args.model, args.offsets)
        table = (
            "\n".join(measurement(clips, _ENCODERS[args.encoder], args.frames, width, height, Path(folder), *more))
            + "\n"
        )
    if args.table is None:
        print(table, end="")
    else:
        args.table.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
