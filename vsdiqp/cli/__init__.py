"""The command ``vsdiqp``: a thin door to the packages that do the work."""

import argparse
import importlib
import io
import sys
from collections.abc import Sequence
from typing import Protocol

from vsdiqp import __version__
from vsdiqp.errors import DiqpError

COMMANDS: dict[str, str] = {
    "info": "versions, backends and shipped models",
    "probe": "codec, size and QP statistics of a video file",
    "evaluate": "measure restorers on clips encoded at several QPs",
    "compare": "a picture of a frame before and after, with metrics",
    "bench": "frames a second of the filter on this machine",
    "convert": "released .pt checkpoint to .safetensors",
    "pool": "encode a folder of videos and stills into training pairs",
    "train": "train a network from a config file",
    "study": "measurements that shape a network: look-ahead distance, sizes, how far to trust it, mixtures",
    "engine": "build, list and remove cached GPU engines",
}
"""Sub-command to its one-line help; each lives in the module ``vsdiqp.cli.<name>``."""


class Command(Protocol):
    """What a sub-command's module provides."""

    def add_parser(self, subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        """Add the sub-command's parser."""
        ...

    def run(self, args: argparse.Namespace) -> int | None:
        """Do the work; returns the exit status, None meaning 0."""
        ...


def _load(name: str) -> Command:
    module: Command = importlib.import_module(f"{__name__}.{name}")
    return module


_PACKAGES = {"PIL": "pillow", "skimage": "scikit-image", "cupy": "cupy-cuda13x", "torch_tensorrt": "torch-tensorrt"}
"""Modules whose packages have other names."""


def _missing(command: str, module: str) -> str:
    name = module.partition(".")[0]
    if name == "vsdiqp":
        return f"{command} is not part of this installation"
    return f"{command} needs the Python module {name}; install it with: pip install {_PACKAGES.get(name, name)}"


def _overview() -> argparse.ArgumentParser:
    """The parser used when no sub-command's module is needed: it knows names and one-line helps alone."""
    parser = argparse.ArgumentParser(prog="vsdiqp", description="Remove HEVC and AV1 compression damage with DiQP.")
    parser.add_argument("--version", action="version", version=f"vsdiqp {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        subparsers.add_parser(name, help=text, add_help=False)
    return parser


def _refusals() -> tuple[type[Exception], ...]:
    """What libraries raise at files and clips that they don't take: of those that were imported, since none is here."""
    known = {"vapoursynth": "Error", "av": "FFmpegError"}
    return tuple(getattr(sys.modules[module], name) for module, name in known.items() if sys.modules.get(module))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``vsdiqp``; returns the exit status: 0 done, 1 an error printed as ``vsdiqp: text``, 2 wrong usage.

    Only the module of the sub-command that was asked for is imported, so that ``vsdiqp --help`` needs no torch.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # files may have names that are no text
    try:
        if name not in COMMANDS:
            _overview().parse_args(arguments)
            return 0
        command = _load(name)
        parser = argparse.ArgumentParser(prog="vsdiqp")
        command.add_parser(parser.add_subparsers(dest="command", required=True))
        return command.run(parser.parse_args(arguments)) or 0
    except SystemExit as stop:
        # argparse exits by itself after --help and after wrong usage.
        return stop.code if isinstance(stop.code, int) else 1
    except DiqpError as error:
        print(f"vsdiqp: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"vsdiqp: {_missing(name, error.name or 'unknown')}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output left (vsdiqp ... | head); Python would complain again at shutdown.
        sys.stderr.close()
        return 1
    except OSError as error:
        print(f"vsdiqp: {error}", file=sys.stderr)
        return 1
    except _refusals() as error:
        print(f"vsdiqp: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vsdiqp: interrupted", file=sys.stderr)
        return 130
