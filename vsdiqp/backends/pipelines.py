"""How many steps ahead Triton's kernels may copy what tensor cores read."""

import re
from functools import cache
from typing import Final

import torch
import triton

ON_THEIR_OWN: Final = (9, 10, 11)
"""Compute capabilities, but for what is behind the point, whose tensor cores read shared memory on their own (wgmma,
tcgen05): Hopper, and Blackwell's large ones."""
FENCES: Final = tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:3]) >= (3, 7, 1)
"""Whether Triton puts a fence between asynchronous copies into shared memory and the tensor cores that read it on their
own. 3.6.0 and 3.7.0 do not (triton issue 9610), although PTX asks for one: what they read may then be older."""


def stages(device: torch.device, wanted: int) -> int:
    """Stages of a loop whose operands come by pointers: as wanted, or 1, without asynchronous copies, where they would
    not be safe. That costs a fifth of a convolution's time (H200)."""
    return 1 if not FENCES and reads_on_its_own(device) else wanted


@cache
def reads_on_its_own(device: torch.device) -> bool:
    """Whether a GPU is one of `ON_THEIR_OWN`."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in ON_THEIR_OWN
