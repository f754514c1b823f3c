"""``vsdiqp evaluate``: measure restorers on clips encoded at several QPs."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vsdiqp.cli.numbers import from_up
from vsdiqp.cli.outputs import check_file, make_folder
from vsdiqp.errors import DiqpError

if TYPE_CHECKING:
    from vsdiqp.progress import ProgressLine

_DEFAULT_QPS: dict[str, tuple[float, ...]] = {"hevc": (22, 27, 32, 37, 42), "av1": (51, 102, 153, 204, 255)}

_EPILOG = """\
methods: input; diqp:MODEL (a shipped name or a checkpoint's path; further filter arguments after commas, as in
diqp:lite,strength=0.5); closed-form (the reference to beat); the classic filters smooth, deblock, mdegrain,
temporalsoften, fluxsmooth, bilateral, bm3d. Encodes and scores are kept in --out and used again."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``evaluate``."""
    parser = subparsers.add_parser("evaluate", help="measure restorers on clips encoded at several QPs", epilog=_EPILOG)
    parser.add_argument("clips", nargs="*", metavar="CLIP", help="pristine video files, or folders of them")
    parser.add_argument("--out", default="evaluation", help="folder for encodes, scores, tables, plots (%(default)s)")
    parser.add_argument("--codecs", default="hevc,av1", help="comma-separated (default %(default)s)")
    parser.add_argument(
        "--qps",
        action="append",
        metavar="[CODEC=]LIST",
        help="comma-separated QPs, such as 22,37 with one codec, or hevc=22,37 (repeatable); default "
        + ", ".join(f"{c}={','.join(f'{q:g}' for q in qps)}" for c, qps in _DEFAULT_QPS.items()),
    )
    parser.add_argument(
        "--methods", nargs="+", default=["diqp:lite"], metavar="METHOD", help="see below (default diqp:lite)"
    )
    parser.add_argument("--classics", action="store_true", help="also all classic filters, as tuned")
    parser.add_argument(
        "--frames", type=from_up(0), default=30, help="at most so many frames a clip (default 30; 0: all)"
    )
    parser.add_argument(
        "--ssim-every", type=from_up(0), default=3, help="SSIM on every N-th frame (default 3; 0: never)"
    )
    parser.add_argument("--vmaf", action="store_true", help="also VMAF, where FFmpeg has libvmaf")
    parser.add_argument(
        "--bits", type=int, choices=range(8, 17), metavar="BITS", help="restore with 8 to 16 bits a sample"
    )
    parser.add_argument("--tune-classics", metavar="JSON", help="instead: tune the classic filters on the clips")
    parser.add_argument("--fit-closed-form", nargs=2, metavar=("POOL", "FILE"), help="instead: fit the closed form")


def run(args: argparse.Namespace) -> int:
    """Measure, or make the references."""
    from vsdiqp.progress import ProgressLine

    if args.fit_closed_form:
        from vsdiqp.evaluation.fit import fit_on_pool

        check_file(args.fit_closed_form[1])
        with ProgressLine() as progress:
            fitted = fit_on_pool(args.fit_closed_form[0], progress)
        fitted.save(args.fit_closed_form[1])
        print(args.fit_closed_form[1])
        return 0
    clips = find_clips(args.clips)
    qps = parse_qps(args.codecs, args.qps or [])
    make_folder(args.out)
    if args.tune_classics:
        check_file(args.tune_classics)
    with ProgressLine() as progress:
        if args.tune_classics:
            _tune(clips, qps, args, progress)
        else:
            _evaluate(clips, qps, args, progress)
    return 0


def find_clips(paths: list[str]) -> list[Path]:
    """The files named, and the video files in the folders named. Raises DiqpError where there are none."""
    clips: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            clips += sorted(
                p for p in path.iterdir() if p.suffix.lower() in (".mkv", ".mp4", ".y4m", ".mov", ".webm", ".avi")
            )
        elif path.is_file():
            clips.append(path)
        else:
            raise DiqpError(f"no such clip or folder: {path}")
    if not clips:
        raise DiqpError("no clips: name video files, or folders that hold some")
    return clips


def parse_qps(
    codecs: str, texts: list[str], defaults: Mapping[str, Sequence[float]] = _DEFAULT_QPS
) -> dict[str, list[float]]:
    """QPs by codec from ``--codecs`` and ``--qps``, else ``defaults``.

    Raises DiqpError for what is not on a codec's scale.
    """
    from vsdiqp.codecs.scales import CODECS, check_qp

    names = [name.strip() for name in codecs.split(",") if name.strip()]
    if not names:
        raise DiqpError(f"--codecs is empty: give one or more of {', '.join(CODECS)}")
    for name in names:
        if name not in CODECS:
            raise DiqpError(f"unknown codec {name!r}; known: {', '.join(CODECS)}")
    qps: dict[str, list[float]] = {name: list(defaults.get(name, ())) for name in names}
    for text in texts:
        codec, equals, values = text.rpartition("=")
        if not equals and len(names) == 1:
            codec = names[0]
        if codec not in qps:
            raise DiqpError(f"--qps {text}: say which codec it is for, as in {names[0]}={values}")
        try:
            qps[codec] = [float(value) for value in values.split(",")]
        except ValueError:
            raise DiqpError(f"--qps {text}: expected numbers separated by commas") from None
        for qp in qps[codec]:
            check_qp(codec, qp)
    return qps


def _evaluate(
    clips: list[Path], qps: dict[str, list[float]], args: argparse.Namespace, progress: "ProgressLine"
) -> None:
    from vsdiqp.evaluation import classics, report
    from vsdiqp.evaluation.evaluate import Settings, evaluate
    from vsdiqp.evaluation.restorers import parse_methods

    methods = parse_methods([*args.methods, *(classics.FILTERS if args.classics else ())])
    settings = Settings(args.frames or None, args.ssim_every, args.vmaf, args.bits)
    results = evaluate(clips, qps, methods, args.out, settings, progress)
    paths = report.write(results, settings, args.out)
    print(report.overview(report.Table(results)))
    print("\n" + "\n".join(str(path) for path in paths))


def _tune(clips: list[Path], qps: dict[str, list[float]], args: argparse.Namespace, progress: "ProgressLine") -> None:
    from vsdiqp.evaluation import classics
    from vsdiqp.evaluation.evaluate import Reference, check_encodable

    check_encodable(qps)
    references = [Reference.open(clip, args.frames or None) for clip in clips]
    points = [(codec, qp) for codec, values in qps.items() for qp in values]
    results: list[classics.Tuned] = []
    for codec, qp in points:
        pairs = [(r.node, r.decode(r.encode(codec, qp, Path(args.out) / "encodes"))) for r in references]
        for name in classics.FILTERS:
            progress(len(results), len(points) * len(classics.FILTERS), f"{codec} {qp:g} {name}")
            results.append(classics.tune(name, codec, qp, pairs))
            best = results[-1]
            print(f"{best.filter} {codec} {qp:g} {best.parameters} {best.gain:+.4f}", flush=True)
    classics.save_table(results, Path(args.tune_classics), f"tuned on {', '.join(r.name for r in references)}")
