"""``vsdiqp pool``: make training clips and their encodes from a folder of stills and videos."""

import argparse
from functools import partial
from pathlib import Path

from vsdiqp.cli.numbers import from_up


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command's arguments."""
    parser = subparsers.add_parser(
        "pool",
        help="make a training pool from stills and videos",
        description="Make a pool of short pristine clips with their HEVC and AV1 encodes, for vsdiqp train. "
        "A pool with fewer items than asked for is continued, by the same sources and settings.",
    )
    parser.add_argument("sources", type=Path, metavar="SOURCES", help="folder of stills and videos")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the pool")
    parser.add_argument(
        "--items", type=from_up(1), default=1500, metavar="N", help="items the pool ends up with (1500)"
    )
    parser.add_argument("--seed", type=from_up(0), default=0, metavar="S", help="another seed gives other items (0)")
    parser.add_argument(
        "--frames",
        type=from_up(1),
        default=15,
        metavar="N",
        help="frames an item (15); networks with K neighbours want 5 + 2K or more",
    )
    parser.add_argument(
        "--size",
        type=from_up(128),
        default=256,
        metavar="SIDE",
        help="side of an item in pixels, a multiple of 64 (256); a network's crops are no larger",
    )
    parser.add_argument(
        "--drawn",
        type=float,
        default=0.06,
        metavar="SHARE",
        help="share of items that show what no camera took: text, pixel art, patterns, gradients (0.06)",
    )
    parser.add_argument("--processes", type=from_up(1), default=1, metavar="P", help="processes at work (1)")
    parser.add_argument(
        "--plain", action="store_true", help="for validation: native crops at fixed QPs, nothing random"
    )
    parser.add_argument("--crops", type=from_up(1), default=5, metavar="N", help="crops a video with --plain (5)")
    parser.add_argument(
        "--qps",
        action="append",
        metavar="CODEC=QP,QP,...",
        help="QPs with --plain, such as hevc=12,17,22 (27,32,37,42 and av1=102,153,204,255)",
    )
    parser.add_argument(
        "--changed",
        action="store_true",
        help="continue a training pool although sources or settings have changed since: items to come are made by them",
    )


def run(args: argparse.Namespace) -> int:
    """Make the pool, showing progress on stderr."""
    from vsdiqp.cli.evaluate import parse_qps
    from vsdiqp.errors import DiqpError
    from vsdiqp.progress import ProgressLine
    from vsdiqp.training.pool import PLAIN_QPS, PoolSettings, generate, generate_plain, plain_encodes

    if args.plain and args.changed:
        raise DiqpError("--changed is for training pools; give a validation pool of other videos another folder")
    settings = PoolSettings(args.size, args.size, args.frames, drawn=args.drawn)
    with ProgressLine() as line:
        progress = partial(line, text="items")
        if args.plain:
            encodes = plain_encodes(parse_qps(",".join(PLAIN_QPS), args.qps or [], PLAIN_QPS))
            generate_plain(args.sources, args.out, args.crops, args.seed, settings, encodes, progress)
        else:
            generate(args.sources, args.out, args.items, args.seed, args.processes, settings, progress, args.changed)
    return 0
