"""Damages a clip with HEVC, restores it in pipes to x265 and SVT-AV1, measures what came out and draws it."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vapoursynth as vs

from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.compare import Still, draw
from vsdiqp.evaluation.evaluate import Reference, Settings, measure, prepare
from vsdiqp.evaluation.metrics import ClipScores, summarise
from vsdiqp.evaluation.video import open_video, settle_colour
from vsdiqp.progress import ProgressLine

core = vs.core

WIDTH, HEIGHT = 400, 288
SHOTS = {
    "astronaut": ((100, 20), (40, 5)),
    "coffee": ((20, 60), (90, 70)),
    "chelsea": ((1, 6), (49, 6)),
    "rocket": ((150, 138), (150, 20)),
}
"""Photographs in scikit-image's wheel, all free of rights, and the way of the camera's upper left corner over them."""

SCRIPT = """\
from vapoursynth import core

clip = core.bs.VideoSource({source!r})
clip = core.diqp.Restore(clip, qp={qp:g}, codec="hevc"{arguments})
clip.set_output()
"""

ENCODERS = {
    "x265": ("restored.hevc", ["x265", "--log-level", "error", "--no-progress", "--crf", "16", "--y4m", "-", "-o"]),
    "SVT-AV1": ("restored.ivf", ["SvtAv1EncApp", "--progress", "0", "--preset", "8", "--crf", "16", "-i", "-", "-b"]),
}
"""File name and command line of each encoder that is piped into; the name of the output file follows."""


def main() -> int:
    """Run the demonstration."""
    args = parse_arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SVT_LOG", "1")
    try:
        demonstrate(args, out)
    except (DiqpError, vs.Error) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("source", nargs="?", help="a good video; without it, camera moves over photographs are made")
    parser.add_argument("--qp", type=float, default=37, help="HEVC QP to damage with, 0 to 51 (default 37)")
    parser.add_argument("--frames", type=int, default=60, help="how many frames (default 60)")
    parser.add_argument("--model", help="shipped name or path of a checkpoint (default: the filter's)")
    parser.add_argument("--out", default="demo-out", help="folder of the results (default demo-out)")
    parser.add_argument("--picture", help="PNG to draw, small (default: picture.png in that folder, large)")
    args = parser.parse_args()
    if args.frames < 4:
        parser.error("--frames must be 4 or more")
    return args


def demonstrate(args: argparse.Namespace, out: Path) -> None:
    """Damage, restore, measure, draw."""
    extra = {} if args.model is None else {"model": args.model}
    if args.source:
        reference = Reference.open(args.source, args.frames)
    else:
        reference = Reference("photographs", f"{WIDTH}x{HEIGHT}x{args.frames}", prepare(photographs(args.frames)))
    source = reference.node
    frames = source.num_frames
    say(f"{reference.name}: {source.width}x{source.height}, {frames} frames; damaging it with x265 at QP {args.qp:g}")
    encoded = reference.encode("hevc", args.qp, out)
    damaged = reference.decode(encoded)

    counter = Counter(damaged)
    restored = core.diqp.Restore(counter.clip, qp=args.qp, codec="hevc", **extra)
    rows = [("damaged", score("damaged", source, damaged, damaged))]
    rows.append(("restored", score("restored", source, damaged, restored)))
    asked = counter.asked / frames

    script = out / "restore.vpy"
    arguments = "".join(f", {name}={value!r}" for name, value in extra.items())
    script.write_text(SCRIPT.format(source=str(encoded.resolve()), qp=args.qp, arguments=arguments), encoding="utf-8")
    rates = [f"{pipe(script):.1f} on its own"]
    for name, (file, command) in ENCODERS.items():
        target = out / file
        rates.append(f"{pipe(script, [*command, str(target)]):.1f} in a pipe to {name}")
        piped = settle_colour(open_video(target), like=source)
        if piped.num_frames != frames:
            raise DiqpError(f"{target} has {piped.num_frames} frames; {frames} went into the pipe")
        rows.append((f"restored, then {name}", score(name, source, damaged, piped)))

    picture = Path(args.picture or out / "picture.png")
    middle = frames // 8
    draw([Still.of(clip, middle) for clip in (damaged, restored, source)], picture, crop=80, crops=1)
    if args.picture:
        shrink(picture)
    report(rows, rates, asked)
    print(f"\nscript: {script}\npicture: {picture}")


def photographs(frames: int) -> Any:
    """Camera moves over photographs: `frames` frames in shots of equal length, moved by fractions of pixels."""
    from skimage import data

    bounds = np.linspace(0, frames, len(SHOTS) + 1).astype(int)
    shots = []
    for (name, (start, stop)), length in zip(SHOTS.items(), np.diff(bounds), strict=True):
        still = picture_clip(getattr(data, name)())
        for time in np.linspace(0, 1, length):
            left, top = (float(a + (b - a) * time) for a, b in zip(start, stop, strict=True))
            window = {"src_left": left, "src_top": top, "src_width": WIDTH, "src_height": HEIGHT}
            shots.append(core.resize.Spline36(still, WIDTH, HEIGHT, format=vs.YUV420P8, matrix=1, **window))
    return core.std.AssumeFPS(core.std.Splice(shots), fpsnum=24, fpsden=1)


def picture_clip(rgb: np.ndarray[Any, Any]) -> Any:
    """A clip of one frame from RGB samples (rows, columns, 3) of 8 bits."""

    def fill(n: int, f: Any) -> Any:
        frame = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), rgb[..., plane])
        return frame

    blank = core.std.BlankClip(width=rgb.shape[1], height=rgb.shape[0], format=vs.RGB24, length=1)
    return core.std.ModifyFrame(blank, blank, fill)


class Counter:
    """A clip that passes frames on and counts them."""

    def __init__(self, clip: Any) -> None:
        self.asked = 0
        self.clip = core.std.ModifyFrame(clip, clip, self._count)

    def _count(self, n: int, f: Any) -> Any:
        self.asked += 1
        return f


def score(name: str, source: Any, damaged: Any, clip: Any) -> ClipScores:
    """Quality of a clip against the source."""
    frames = []
    with ProgressLine() as progress:
        for scores in measure(source, damaged, clip, Settings(frames=None)):
            frames.append(scores)
            progress(len(frames), source.num_frames, f"measuring: {name}")
    return summarise(frames)


def pipe(script: Path, encoder: Sequence[str] | None = None) -> float:
    """Frames a second of ``vspipe SCRIPT``, piped into an encoder or, without one, into nothing."""
    command = [str(Path(sys.executable).with_name("vspipe")), "-p", "-c", "y4m", str(script)]
    if encoder is None:
        say(f"vspipe {script} --")
        done = run_vspipe(subprocess.Popen([*command, "--"], stderr=subprocess.PIPE))
    else:
        say(f"vspipe -c y4m {script} - | {' '.join(encoder)}")
        with subprocess.Popen([*command, "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as vspipe:
            with subprocess.Popen([*unhurried(), *encoder], stdin=vspipe.stdout, stdout=sys.stderr) as sink:
                assert vspipe.stdout is not None
                vspipe.stdout.close()
                done = run_vspipe(vspipe)
            if sink.returncode:
                raise DiqpError(f"{encoder[0]} ended with status {sink.returncode}")
    return done


def run_vspipe(vspipe: "subprocess.Popen[bytes]") -> float:
    """Show what vspipe says, wait for its end; the frames a second that it reports."""
    assert vspipe.stderr is not None
    said = b""
    while chunk := vspipe.stderr.read1():
        said += chunk
        sys.stderr.buffer.write(chunk)
        sys.stderr.flush()
    if vspipe.wait():
        raise DiqpError(f"vspipe ended with status {vspipe.returncode}")
    rate = re.search(rb"Output .*\(([0-9.]+) fps\)", said)
    if rate is None:
        raise DiqpError("vspipe did not say how fast it was")
    return float(rate[1])


def unhurried() -> list[str]:
    """What goes before an encoder's command: SVT-AV1, when root runs it, puts its threads before all others."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    return ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"]


def report(rows: Sequence[tuple[str, ClipScores]], rates: Sequence[str], asked: float) -> None:
    """Print what was measured."""
    first = rows[0][1]
    print(f"\n{'':24}{'Y PSNR':>16}{'Y SSIM':>18}{'RGB PSNR':>16}")
    for name, scores in rows:
        psnr = f"{scores.y_psnr:.2f} ({scores.y_psnr - first.y_psnr:+.2f})"
        ssim = f"{scores.y_ssim or 0:.4f} ({(scores.y_ssim or 0) - (first.y_ssim or 0):+.4f})"
        rgb = f"{scores.rgb_psnr:.2f} ({scores.rgb_psnr - first.rgb_psnr:+.2f})"
        print(f"{name:24}{psnr:>16}{ssim:>18}{rgb:>16}")
    print(f"\nframes a second: {', '.join(rates)}")
    print(f"source frames asked for, for each frame restored: {asked:.2f}")


def shrink(picture: Path) -> None:
    """Make a PNG as wide as pages show it."""
    from PIL import Image

    with Image.open(picture) as image:
        size = (840, round(image.height * 840 / image.width))
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(picture, optimize=True)


def say(text: str) -> None:
    """One line of progress."""
    print(f"== {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
