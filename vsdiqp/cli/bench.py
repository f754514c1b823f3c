"""``vsdiqp bench``: frames a second of the filter, and how it compares with its own other settings."""

import argparse
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from vsdiqp.cli.numbers import from_up
from vsdiqp.errors import DiqpError

_SIZES = {"270p": (480, 270), "540p": (960, 540), "720p": (1280, 720), "1080p": (1920, 1080), "2160p": (3840, 2160)}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``bench``."""
    parser = subparsers.add_parser(
        "bench",
        help="frames a second of the filter on this machine",
        description="Frames a second of the filter on this machine, and what ran to reach them.",
    )
    parser.add_argument("--size", default="540p", help=f"WIDTHxHEIGHT or {', '.join(_SIZES)} (default 540p)")
    parser.add_argument(
        "--frames", type=from_up(1), default=12, help="frames timed, a multiple of three serves best (12)"
    )
    parser.add_argument("--warm-up", type=from_up(0), default=3, help="frames before them that are not timed (3)")
    parser.add_argument("--bits", type=int, default=8, choices=range(8, 17), metavar="BITS", help="8 to 16 (8)")
    parser.add_argument("--codec", default="hevc", help="hevc or av1 (default hevc)")
    parser.add_argument("--qp", type=float, default=37, help="in the codec's own scale (default 37)")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="SETTINGS",
        help="arguments of core.diqp.Restore to time side by side, such as model=lite,backend=cpu model=base "
        "(default model=auto)",
    )


def run(args: argparse.Namespace) -> int:
    """Time each of the settings on the same clip of moving noise."""
    import vapoursynth

    if not hasattr(vapoursynth.core, "diqp"):
        raise DiqpError("the VapourSynth plugin diqp is not loaded; install vsdiqp: pip install . in its clone")
    width, height = parse_size(args.size)
    if width % 2 or height % 2:
        raise DiqpError(f"--size {args.size}: 4:2:0 clips need an even width and height")
    clip = noise(width, height, args.bits, args.warm_up + args.frames)
    print(f"{width}x{height}, YUV 4:2:0, {args.bits} bits, {args.frames} frames")
    rates = []
    for text in args.settings or ["model=auto"]:
        settings = parse_settings(text)
        for given in ("qp", "codec"):
            if given in settings:
                raise DiqpError(f"{text}: {given} is the same for all that is timed; give --{given}")
        try:
            with said() as lines:
                restored = vapoursynth.core.diqp.Restore(clip, qp=args.qp, codec=args.codec, **settings)
            rates.append(frames_per_second(restored, args.warm_up))
        except vapoursynth.Error as error:
            raise DiqpError(f"{text}: {error}") from error
        print(f"{text}: {rates[-1]:.3f} frames/s, {rates[-1] / rates[0]:.2f} times the first", flush=True)
        for line in lines:
            print(f"    {line}", flush=True)
    return 0


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """What the filter says meanwhile about what runs how: the network, and one more line for its first pass."""
    lines: list[str] = []
    listener = logging.Handler(logging.INFO)
    listener.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("vsdiqp")
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height from ``1920x1080`` or ``1080p``. Raises DiqpError for anything else."""
    if text in _SIZES:
        return _SIZES[text]
    width, _, height = text.partition("x")
    if not (
        width.isascii() and width.isdigit() and height.isascii() and height.isdigit() and int(width) and int(height)
    ):
        raise DiqpError(f"--size {text}: expected WIDTHxHEIGHT or one of {', '.join(_SIZES)}")
    return int(width), int(height)


def parse_settings(text: str) -> dict[str, int | float | str]:
    """Filter arguments from ``name=value,name=value``. Raises DiqpError where one is not of that form."""
    from vsdiqp.evaluation.restorers import parse_argument

    return dict(parse_argument(part) for part in text.split(","))


def noise(width: int, height: int, bits: int, frames: int) -> Any:
    """A clip whose frames all differ, cheap to make: one frame of noise, shifted further for every frame."""
    import numpy as np
    import vapoursynth

    core = vapoursynth.core
    clip_format = core.query_video_format(vapoursynth.YUV, vapoursynth.INTEGER, bits, 1, 1)
    still = core.std.BlankClip(width=width, height=height, format=clip_format.id, length=1, keep=True)
    rng = np.random.default_rng(0)

    def fill(n: int, f: Any) -> Any:
        out = f.copy()
        for i in range(3):
            plane = np.asarray(out[i])
            plane[...] = rng.integers(0, 1 << bits, plane.shape)
        return out

    still = core.std.ModifyFrame(still, still, fill)
    looped = core.std.Loop(core.std.SetFrameProps(still, _Matrix=1, _Range=0, _ChromaLocation=0), frames)

    def shift(n: int) -> Any:
        amount = 2 * (n % min(16, width // 2 - 1)) if width > 4 else 0
        rest = core.std.CropAbs(looped, width - amount, height, amount)
        return core.std.StackHorizontal([rest, core.std.CropAbs(looped, amount, height)]) if amount else looped

    return core.std.FrameEval(looped, shift)


def frames_per_second(clip: Any, warm_up: int) -> float:
    """Rate of a linear run, without its first `warm_up` frames."""
    start = time.perf_counter()
    timed = 0
    for n, _ in enumerate(clip.frames(close=True)):
        if n + 1 == warm_up:
            start = time.perf_counter()
        timed += n >= warm_up
    return timed / (time.perf_counter() - start)
