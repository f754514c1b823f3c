"""``vsdiqp convert``: a released .pt checkpoint as .safetensors, with its description inside."""

import argparse
import dataclasses
from pathlib import Path

from vsdiqp.errors import DiqpError


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``convert``."""
    parser = subparsers.add_parser("convert", help="released .pt checkpoint to .safetensors")
    parser.add_argument("source", metavar="IN", help="checkpoint to read: a released .pt, or a .safetensors")
    parser.add_argument("target", metavar="OUT", help="file to write, ending in .safetensors")
    parser.add_argument("--codec", choices=("hevc", "av1"), help="what it was trained on (default: from its name)")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")


def run(args: argparse.Namespace) -> int:
    """Convert, then read the result back and describe it."""
    from vsdiqp.cli.info import describe
    from vsdiqp.network import load_checkpoint, save_checkpoint

    target = Path(args.target)
    if target.suffix != ".safetensors":
        raise DiqpError(f"the file to write must end in .safetensors, got {target}")
    if target.exists() and not args.force:
        raise DiqpError(f"{target} exists; give --force to overwrite it")
    network = load_checkpoint(args.source)
    config = dataclasses.replace(network.config, name=target.stem)
    if args.codec and config.location != "tables":
        raise DiqpError(
            f"{args.source} says itself what it was trained on ({', '.join(config.codecs)}): leave --codec out"
        )
    if args.codec:
        known = config.qp_range.get(args.codec)
        if known is None:
            raise DiqpError(f"{args.source} was trained on {', '.join(config.codecs)}, not on {args.codec}")
        config = dataclasses.replace(config, codecs=(args.codec,), qp_range={args.codec: known})
    network.config = config
    save_checkpoint(network, target)
    print(describe(load_checkpoint(target).config))
    return 0
