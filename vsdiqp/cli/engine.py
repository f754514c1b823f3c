"""``vsdiqp engine``: build, list and remove the TensorRT engines in the user's cache folder."""

import argparse
import sys
import time

from vsdiqp.cli.numbers import from_up
from vsdiqp.errors import DiqpError


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``engine``."""
    parser = subparsers.add_parser("engine", help="build, list and remove cached GPU engines")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="build an engine now instead of when a script opens (takes minutes)")
    build.add_argument("model", nargs="?", default="base", help="a shipped name or a checkpoint (default: base)")
    build.add_argument("--tile", type=from_up(1), nargs=2, metavar=("WIDTH", "HEIGHT"), help="default: the model's own")
    build.add_argument("--batch", type=from_up(1), help="largest number of tiles at once (default: the filter's)")
    build.add_argument("--precision", choices=("fp16", "bf16", "fp32"), default="fp16")
    build.add_argument("--device", type=from_up(0), default=0, help="index of the GPU (default: 0)")
    actions.add_parser("list", help="show the engines that are there")
    actions.add_parser("clear", help="remove all of them")


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    from vsdiqp.backends.engine_cache import EngineCache

    cache = EngineCache()
    if args.action == "build":
        return _build(args)
    if args.action == "clear":
        count, size = cache.clear()
        print(f"removed {count} engine(s), {size / 2**20:.1f} MiB, from {cache.folder}")
        return 0
    entries = cache.entries()
    for entry in entries:
        key = entry.key
        what = (
            "damaged; it will be built again when needed"
            if key is None
            else f"none: {entry.refused}"
            if entry.refused
            else f"{key.model} {key.tile[0]}x{key.tile[1]} batch {key.batch} {key.precision}, {key.gpu}, "
            f"TensorRT {key.tensorrt}, driver {key.driver}"
        )
        print(f"{entry.path.name}  {entry.size / 2**20:.1f} MiB  {what}")
    print(f"{len(entries)} engine(s) in {cache.folder}")
    return 0


def _build(args: argparse.Namespace) -> int:
    from vsdiqp.backends import unavailable

    reason = unavailable("tensorrt")
    if reason is not None:
        raise DiqpError(f"no engine can be built here: {reason}")
    from vsdiqp.backends import cuda, memory, tensorrt
    from vsdiqp.backends.engine_cache import EngineCache
    from vsdiqp.network import load_checkpoint

    networks = [load_checkpoint(args.model)]
    if networks[0].config.first_pass:
        networks.append(load_checkpoint(networks[0].config.first_pass))
    tiles: list[tuple[int, int]] = [tuple(args.tile or (n.config.tile, n.config.tile)) for n in networks]
    for network, tile in zip(networks, tiles, strict=True):
        config = network.config
        if any(side % config.multiple for side in tile):
            raise DiqpError(f"--tile is {tile[0]} {tile[1]}; {config.name} takes multiples of {config.multiple}")
    (device,) = cuda.cuda_devices([args.device])
    started = time.monotonic()
    for network, tile in zip(networks, tiles, strict=True):
        about = f"{network.config.name}, tiles of {tile[0]}x{tile[1]}, for {device.name}"
        print(f"building {about} (minutes)...", file=sys.stderr)
        batch = args.batch or tensorrt.DEFAULT_BATCH
        compiler, cache = tensorrt.TorchTensorRT(), EngineCache()
        try:
            tensorrt.engine_network(network, device, tile, batch, args.precision, compiler, cache, again=True)
        except Exception as error:
            if not memory.ran_out(error):
                raise
            raise DiqpError(
                f"the GPU has too little free memory for {batch} tiles of {tile[0]}x{tile[1]} at once; give a smaller "
                "--batch or --tile, or close other programs that use it"
            ) from None
    print(f"ready after {time.monotonic() - started:.0f} s", file=sys.stderr)
    return 0
