"""``vsdiqp compare``: a picture of a frame before and after, with metrics."""

import argparse

from vsdiqp.cli.numbers import from_up
from vsdiqp.cli.outputs import check_file


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``compare``."""
    parser = subparsers.add_parser("compare", help="a picture of a frame before and after, with metrics")
    parser.add_argument("before", metavar="A", help="the damaged video or picture")
    parser.add_argument("after", metavar="B", help="the restored one")
    parser.add_argument("source", metavar="REF", nargs="?", help="the pristine one; metrics need it")
    parser.add_argument("--out", required=True, metavar="PNG", help="picture to write")
    parser.add_argument("--frame", type=from_up(0), default=0, help="frame number, from 0 (default 0)")
    parser.add_argument("--crop", type=from_up(8), default=96, help="side of the zoomed crops in pixels (default 96)")
    parser.add_argument("--crops", type=from_up(0), default=3, help="how many crops (default 3)")


def run(args: argparse.Namespace) -> int:
    """Draw, and print the metrics."""
    from vsdiqp.evaluation.compare import compare

    check_file(args.out)
    paths = [path for path in (args.before, args.after, args.source) if path]
    metrics = compare(paths, args.out, args.frame, args.crop, args.crops)
    for name, values in zip(("before", "after"), metrics, strict=False):
        print(f"{name}: {values}")
    if metrics:
        before, after = metrics
        print(f"gain: Y {after.y_psnr - before.y_psnr:+.3f} dB, RGB {after.rgb_psnr - before.rgb_psnr:+.3f} dB")
    print(args.out)
    return 0
