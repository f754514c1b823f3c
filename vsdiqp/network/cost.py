"""What a network costs, from its configuration alone: nothing is computed, so size does not matter."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vsdiqp.network.checkpoint import read_first_pass
from vsdiqp.network.config import FRAMES, DiQPConfig
from vsdiqp.network.diqp import DiQP


def kmac(config: DiQPConfig) -> float:
    """Thousands of multiply-accumulates a pixel and frame, on a tile of the size the network was built for.

    Counts matrix products and convolutions as they run: packed weights with their zeros, attention's two products.
    Aligning neighbours is not the network's work and not counted; a first pass is.
    """
    before = kmac(read_first_pass(config.first_pass)) if config.first_pass else 0.0
    side = config.tile
    with torch.device("meta"):
        network = DiQP(config).prepare()
        pictures = [torch.zeros(1, 3, frames, side, side) for frames in (FRAMES, 2, 2, 2)]
        location, decay = torch.zeros(6, 1, 1), torch.ones(1, 1, 1, 1, 1)
        others = config.seen
        beside = (torch.zeros(1, FRAMES, others, side, side),) if others else ()
    # Only the plain form of attention is made of operations that the counter knows on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(*pictures, location, decay, *beside)
    return before + counter.get_total_flops() / 2 / (FRAMES * side * side) / 1000


def parameters(config: DiQPConfig) -> int:
    """Numbers that training finds."""
    with torch.device("meta"):
        return sum(p.numel() for p in DiQP(config).parameters())
