"""``vsdiqp info``: versions, backends and shipped models, for users and for bug reports."""

import argparse
import platform
from importlib import metadata
from typing import TYPE_CHECKING

from vsdiqp import __version__
from vsdiqp.errors import DiqpError

if TYPE_CHECKING:
    from vsdiqp.network import DiQPConfig

_PACKAGES = ("vapoursynth", "torch", "numpy", "safetensors", "av", "vapoursynth-bestsource", "torch-tensorrt")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``info``."""
    parser = subparsers.add_parser("info", help="versions, backends and shipped models")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="describe these checkpoints only")


def run(args: argparse.Namespace) -> int:
    """Print what is here."""
    from vsdiqp.backends import MODULES, unavailable
    from vsdiqp.network import read_config, shipped

    if args.models:
        print("\n".join(describe(read_config(model)) for model in args.models))
        return 0
    print(f"vsdiqp {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in _PACKAGES:
        print(f"  {package}: {_version(package)}")
    print(f"plugin: {_plugin()}")
    print('backends, in the order in which backend="auto" tries them:')
    for name in MODULES:
        print(f"  {name}: {unavailable(name) or 'ready'}")
    print("devices:")
    for line in _devices():
        print(f"  {line}")
    names = shipped()
    print("models:" if names else "models: none are installed")
    for name in names:
        try:
            print(describe(read_config(name), indent="  "))
        except DiqpError as error:
            # One damaged file must not hide the others: this command is where users look for the reason.
            print(f"  {name}: {error}")
    return 0


def describe(config: "DiQPConfig", indent: str = "") -> str:
    """A checkpoint in a few lines: what it is for, its size, where it comes from."""
    ranges = ", ".join(f"{codec} QP {low}..{high}" for codec, (low, high) in config.qp_range.items())
    guides = [name for name, used in (("look around", config.uses_around), ("look ahead", config.uses_ahead)) if used]
    seen = 3 + 2 * config.neighbours
    lines = [f"{config.name}: {ranges}; {config.colour}, tile {config.tile}, sees {seen} frames"]
    if config.first_pass:
        lines.append(f"  sees other frames as {config.first_pass} restores them, and its own besides")
    if guides:
        lines.append(f"  guides: {' and '.join(guides)}, T {config.frames_ahead}")
    if config.max_size:
        lines.append("  frames up to {}x{}".format(*config.max_size))
    if config.origin:
        lines.append(f"  {config.origin}")
    return "\n".join(indent + line for line in lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _plugin() -> str:
    """What VapourSynth says of our plugin."""
    import vapoursynth

    plugin = getattr(vapoursynth.core, "diqp", None)
    if plugin is None:
        number = vapoursynth.core.version_number()
        return f"not loaded by VapourSynth {number}; install vsdiqp again: pip install . in its clone"
    try:
        version = plugin.Version()
    except vapoursynth.Error as error:
        return f"loaded, but {error}"
    return ", ".join(f"{key} {_text(value)}" for key, value in version.items())


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _devices() -> list[str]:
    """The CPU as torch sees it, and CUDA's devices."""
    import torch

    lines = [f"cpu: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"]
    if not torch.cuda.is_available():
        return [*lines, "cuda: none that this torch can use"]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        lines.append(
            f"cuda {index}: {device.name}, {device.total_memory / 2**30:.1f} GiB, sm_{device.major}{device.minor}"
        )
    return lines
