"""``vsdiqp train``: train a network on a pool of degraded clips."""

import argparse

from vsdiqp.cli.numbers import from_up
from vsdiqp.cli.outputs import check_file


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the sub-command's arguments."""
    parser = subparsers.add_parser("train", help="train a network on a pool; resumes where it was stopped")
    parser.add_argument("config", help="a shipped configuration (lite, base, released) or a TOML file")
    parser.add_argument("--pool", help="training pool, made with 'vsdiqp pool'")
    parser.add_argument("--validation", help="validation pool")
    parser.add_argument("--out", help="folder for checkpoints, state and logs")
    parser.add_argument("--steps", type=from_up(1), help="optimiser steps of the whole schedule")
    parser.add_argument("--batch", type=from_up(1), help="samples a step and process")
    parser.add_argument("--minutes", type=float, help="stop, resumably, after this long")
    parser.add_argument("--by-time", action="store_true", default=None, help="let the learning rate fall by --minutes")
    parser.add_argument("--reuse", type=from_up(1), help="draw batches from a reservoir that uses a sample so often")
    parser.add_argument("--form", help="on a GPU: eager, graph or compile")
    parser.add_argument("--initial", help="checkpoint whose weights to start from")
    parser.add_argument("--teacher", help="what to imitate first: closed-form filters, or another network's checkpoint")
    parser.add_argument("--fit-teacher", metavar="FILE", help="fit such filters on the pool, write them, and stop")
    parser.add_argument("--threads", type=from_up(1), help="CPU threads")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; progress on stderr, the checkpoint's path on stdout."""
    import torch

    from vsdiqp.training.loop import Trainer
    from vsdiqp.training.settings import load_settings

    names = ["pool", "validation", "out", "steps", "batch", "minutes", "by_time", "reuse", "form", "initial"]
    names += ["teacher", "threads"]
    settings = load_settings(args.config, {name: getattr(args, name) for name in names})
    if args.fit_teacher:
        from vsdiqp.training.dataset import PoolDataset
        from vsdiqp.training.teacher import fit

        check_file(args.fit_teacher)
        fit(PoolDataset(settings.pool, cache_bytes=0), limit=1000).save(args.fit_teacher)
        print(args.fit_teacher)
        return 0
    print(Trainer(settings).run())
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0
