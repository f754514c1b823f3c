"""``vsdiqp probe``: codec, size and QP statistics of a video file."""

import argparse
import json
from pathlib import Path


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the parser of ``vsdiqp probe``."""
    parser = subparsers.add_parser(
        "probe",
        help="codec, size and QP statistics of a video file",
        description="Read the QP of every frame of a video file from its bitstream.",
    )
    parser.add_argument("file", type=Path, help="HEVC, AV1, H.264, VP9 or MPEG video in any container or raw")
    parser.add_argument("--json", action="store_true", help="print JSON, with the QP of every frame")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="write a line for every frame")
    parser.add_argument("--qpfile", type=Path, metavar="PATH", help="write types and QPs for x265 --qpfile")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the QP over time (needs matplotlib)")
    parser.add_argument("--no-cache", action="store_true", help="read the file even if it is known, and keep nothing")


def run(args: argparse.Namespace) -> None:
    """Read the file, write what was asked for, print the summary on stdout."""
    from vsdiqp.codecs import probe, report
    from vsdiqp.errors import DiqpError

    scan = probe(args.file, use_cache=not args.no_cache)
    try:
        if args.csv is not None:
            report.write_csv(args.csv, scan)
        if args.qpfile is not None:
            report.write_qpfile(args.qpfile, scan)
        if args.plot is not None:
            report.write_plot(args.plot, scan, args.file.name)
    except OSError as error:
        targets = ", ".join(str(path) for path in (args.csv, args.qpfile, args.plot) if path is not None)
        raise DiqpError(f"cannot write {error.filename or targets}: {error.strerror or error}") from error
    if args.json:
        print(json.dumps(report.summary(args.file, scan) | {"qps": scan.qps}, indent=None))
    else:
        print(report.text(args.file, scan))
