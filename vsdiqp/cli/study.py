"""``vsdiqp study``: measurements that shape a network: look-ahead, sizes, trust, mirrored views, mixtures."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vsdiqp.cli.numbers import from_up
from vsdiqp.cli.outputs import check_file, make_folder

if TYPE_CHECKING:
    import torch

    from vsdiqp.network import DiQP
    from vsdiqp.training.dataset import PoolDataset


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``study`` and its studies."""
    parser = subparsers.add_parser("study", help="measurements that shape a network: look-ahead distance, sizes, trust")
    studies = parser.add_subparsers(dest="study", metavar="STUDY", required=True)

    ahead = studies.add_parser(
        "look-ahead",
        help="how much frames T apart differ (paper, figure 4)",
        description="Write look-ahead.csv and look-ahead.png: mean absolute luma difference between frame n+1 and "
        "frame n+1+T, for every clip and T.",
    )
    ahead.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="video files")
    ahead.add_argument("--furthest", type=from_up(1), default=60, metavar="T", help="largest T (60)")
    ahead.add_argument(
        "--frames", type=from_up(2), default=300, metavar="N", help="frames of each clip that are read (300)"
    )
    ahead.add_argument("--out", type=Path, default=Path("out/study"), metavar="FOLDER", help="where to write")

    shapes = studies.add_parser(
        "shapes",
        help="quality against cost of several configurations",
        description="Train each configuration for the same number of steps and write shapes.csv and shapes.md: gain on "
        "a validation pool, multiply-accumulates, parameters. Goes on where it was stopped.",
    )
    shapes.add_argument("configs", nargs="+", metavar="CONFIG", help="shipped configurations or TOML files")
    shapes.add_argument("--pool", required=True, help="training pool, made with 'vsdiqp pool'")
    shapes.add_argument("--validation", required=True, help="validation pool")
    shapes.add_argument("--steps", type=from_up(1), default=2000, metavar="N", help="optimiser steps of each (2000)")
    shapes.add_argument("--batch", type=from_up(1), help="samples a step; the same for all (each configuration's own)")
    shapes.add_argument("--crop", type=from_up(1), help="side of a sample; the same for all (each configuration's own)")
    shapes.add_argument("--items", type=from_up(0), default=0, metavar="N", help="validation items used (all)")
    shapes.add_argument("--teacher", help="closed-form filters to imitate first (each configuration's own)")
    shapes.add_argument("--threads", type=from_up(1), help="CPU threads")
    shapes.add_argument("--out", type=Path, default=Path("out/study"), metavar="FOLDER", help="where to write")

    trust = studies.add_parser(
        "trust",
        help="how much of a trained network's prediction to apply at each QP",
        description="Measure, on a validation pool, which share of a network's prediction gains most at each QP "
        "without harm, in luma and chroma; write the checkpoint that applies it, and the table beside it. QPs beyond "
        "those of the pool keep the shares that the checkpoint has.",
    )
    _add_validation(trust)
    trust.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write (.safetensors)")
    trust.add_argument(
        "--tile", type=from_up(1), metavar="SIDE", help="default tile side of the result (the checkpoint's own)"
    )

    views = studies.add_parser(
        "mirrored",
        help="how much of a prediction depends on which way round the picture lies",
        description="Write mirrored.md: on a validation pool, what a network gains, what means of its answers to the "
        "same pictures mirrored would gain, and how far those answers are apart.",
    )
    _add_validation(views)
    views.add_argument("--out", type=Path, default=Path("out/study"), metavar="FOLDER", help="where to write")

    mixing = studies.add_parser(
        "mix",
        help="a network between two that were trained from the same weights",
        description="Write the weighted mean of two networks' weights. Where one was trained on from the other, some "
        "way between them often gains more than either ends; 'study trust' measures what came of it.",
    )
    mixing.add_argument("first", metavar="FIRST", help="checkpoint, whose settings the result has")
    mixing.add_argument("second", metavar="SECOND", help="checkpoint of the same shape, whose history the result has")
    mixing.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write (.safetensors)")
    mixing.add_argument("--share", type=float, default=0.5, metavar="S", help="of the second, 0 to 1 (0.5)")


def _add_validation(parser: argparse.ArgumentParser) -> None:
    """What `_validation` reads."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="what 'vsdiqp train' wrote, or a shipped name")
    parser.add_argument("--validation", required=True, help="validation pool: 'vsdiqp pool --plain --qps ...'")
    parser.add_argument("--items", type=from_up(0), default=0, metavar="N", help="validation items used (all)")
    parser.add_argument("--threads", type=from_up(1), help="CPU threads")


def run(args: argparse.Namespace) -> int:
    """Run one study; progress on stderr, the written files' paths on stdout."""
    known = {"look-ahead": _look_ahead, "shapes": _shapes, "trust": _trust, "mirrored": _mirrored, "mix": _mix}
    for path in known[args.study](args):
        print(path)
    return 0


def _look_ahead(args: argparse.Namespace) -> list[Path]:
    from vsdiqp.progress import ProgressLine
    from vsdiqp.training.study import frame_differences, luma_frames, write_differences

    make_folder(args.out)
    results = []
    with ProgressLine() as progress:
        for index, clip in enumerate(args.clips):
            progress(index, len(args.clips), clip.name)
            results.append(frame_differences(clip.stem, luma_frames(clip, args.frames), args.furthest))
    return write_differences(results, args.out)


def _shapes(args: argparse.Namespace) -> list[Path]:
    from vsdiqp.errors import DiqpError
    from vsdiqp.training.settings import load_settings
    from vsdiqp.training.study import compare_shapes

    names = [Path(config).stem for config in args.configs]
    if len(set(names)) < len(names):
        raise DiqpError(f"the configurations are named {', '.join(names)}; each needs a name of its own")
    given = ("pool", "validation", "steps", "batch", "crop", "teacher", "threads")
    changes = {name: getattr(args, name) for name in given}
    runs = [(name, load_settings(config, changes)) for name, config in zip(names, args.configs, strict=True)]
    return compare_shapes(runs, args.out, args.items, lambda text: print(text, file=sys.stderr, flush=True))


def _mix(args: argparse.Namespace) -> list[Path]:
    from vsdiqp.network import load_checkpoint, read_metadata, save_checkpoint
    from vsdiqp.training.mixing import mix

    _check_out(args.out)
    mixed = mix(load_checkpoint(args.first), load_checkpoint(args.second), args.share)
    save_checkpoint(mixed, args.out, read_metadata(args.second))
    return [args.out]


def _check_out(out: Path) -> None:
    """Refuse a checkpoint to write that is not called like one, or cannot be written."""
    from vsdiqp.errors import DiqpError

    if out.suffix != ".safetensors":
        raise DiqpError(f"OUT is {out}; give a name that ends in .safetensors")
    check_file(out)


def _validation(args: argparse.Namespace) -> "tuple[DiQP, PoolDataset, torch.device]":
    """The checkpoint to study, the validation pool as it sees it, and what to run on."""
    import torch

    from vsdiqp.network import load_checkpoint
    from vsdiqp.training.first_pass import open_pool

    if args.threads:
        torch.set_num_threads(args.threads)
    network = load_checkpoint(args.checkpoint)
    dataset = open_pool(args.validation, network.config, "nominal", cache_bytes=0)
    return network, dataset, torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _mirrored(args: argparse.Namespace) -> list[Path]:
    from functools import partial

    from vsdiqp.progress import ProgressLine
    from vsdiqp.training.mirrored import compare_views, table
    from vsdiqp.training.validation import restored_streams

    make_folder(args.out)
    network, dataset, device = _validation(args)
    with ProgressLine() as line:
        streams = restored_streams(network, dataset, device, "bf16", args.items, partial(line, text="items"))
        found = compare_views(streams, network, device, "bf16")
    path: Path = args.out / "mirrored.md"
    path.write_text(table(found) + "\n", encoding="utf-8")
    return [path]


def _trust(args: argparse.Namespace) -> list[Path]:
    from functools import partial

    from vsdiqp.network import read_metadata, save_checkpoint
    from vsdiqp.progress import ProgressLine
    from vsdiqp.training.trust import measure, table, trusted, unmeasured
    from vsdiqp.training.validation import restored_streams

    _check_out(args.out)
    network, dataset, device = _validation(args)
    config = network.config
    with ProgressLine() as bar:
        progress = partial(bar, text="items")
        found = measure(restored_streams(network, dataset, device, "bf16", args.items, progress), config)
    for line in unmeasured(network, found):
        print(f"warning: {line}", file=sys.stderr)
    result = trusted(network, found, args.tile or config.tile)
    save_checkpoint(result, args.out, read_metadata(args.checkpoint))
    beside = args.out.with_suffix(".md")
    beside.write_text(table(found, result) + "\n", encoding="utf-8")
    return [args.out, beside]
