"""Time and memory of everything in a group but the network: reading, tiling, thumbnails, blending, writing.

Prints CPU milliseconds a group of three frames, for common formats, and the peak of the memory above the frames
themselves beside the bound that vsdiqp/restorer.py gives. Uses one thread, so that a busy machine changes little.
"""

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.stand_ins import Zero, clip_format, colour, make_run
from vsdiqp.clip import ClipFormat, Settings
from vsdiqp.restorer import Restorer, memory_bound

FORMATS = [
    ("YUV", "integer", 8, (1, 1)),
    ("YUV", "integer", 10, (1, 1)),
    ("YUV", "integer", 16, (0, 0)),
    ("YUV", "float", 16, (1, 0)),
    ("RGB", "integer", 8, (0, 0)),
]


class Silent(Zero):
    """Predicts nothing at no cost."""

    def __init__(self, **config: object) -> None:
        super().__init__(**config)
        self._nothing = torch.zeros(())

    def frame_guides(self, around, ahead_scaled, weight_decay):
        """Nothing."""
        return ()

    def predict(self, tile, ahead_tile, guides, location, weight_decay):
        """Zeros of no memory."""
        return self._nothing.expand(tile.shape)


def resident(field: str) -> float:
    """MiB of resident memory now (VmRSS) or at most so far (VmHWM). Linux."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def measure(clip: ClipFormat, network_colour: str, guides: bool, groups: int = 5) -> None:
    """Print one line. Only in a process of its own is the peak of memory its own."""
    torch.set_num_threads(1)
    warm = clip_format(clip.family, clip.bits, (clip.subsampling_w, clip.subsampling_h), (64, 64), clip.sample_type)
    Restorer(Settings(backend="cpu", precision="fp32"), warm, Silent(colour=network_colour)).restore(
        make_run(warm, colour(clip.family))
    )
    network = Silent(
        colour=network_colour, tile=512, overlap=32, multiple=64, align=64, uses_around=guides, uses_ahead=guides
    )
    settings = Settings(backend="cpu", precision="fp32")
    restorer = Restorer(settings, clip, network)
    run = make_run(clip, colour(clip.family))
    before = resident("VmRSS")
    restorer.restore(run)
    peak = resident("VmHWM") - before
    start = time.process_time()
    for _ in range(groups):
        restorer.restore(run)
    spent = (time.process_time() - start) / groups * 1000
    subsampling = f"{clip.subsampling_w}{clip.subsampling_h}"
    print(
        f"{clip.width}x{clip.height} {clip.family}{subsampling} {clip.sample_type}{clip.bits:<3} {network_colour:5} "
        f"guides {'yes' if guides else 'no ':3} {spent:7.0f} ms a group   peak {peak:6.0f} MiB, "
        f"bound {memory_bound(clip, restorer.plan) / 2**20:6.0f} MiB"
    )


def main() -> None:
    """Measure the formats at the sizes given (1920x1080 unless some are)."""
    pool = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1)
    for size in sys.argv[1:] or ["1920x1080"]:
        width, height = map(int, size.split("x"))
        for family, sample_type, bits, subsampling in FORMATS:
            clip = clip_format(family, bits, subsampling, (width, height), sample_type)
            for network_colour in ("ycbcr", "rgb"):
                for guides in (False, True):
                    pool.submit(measure, clip, network_colour, guides).result()


if __name__ == "__main__":
    main()
