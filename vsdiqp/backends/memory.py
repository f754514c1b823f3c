"""How much is evaluated at once: batches from free memory, and what to try when memory does not suffice."""

import math
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import torch

from vsdiqp import tiles
from vsdiqp.backends.base import Task
from vsdiqp.errors import DiqpError
from vsdiqp.tiles import TilePlan

LARGEST_BATCH: Final = 8
"""Past this a batch only takes memory: one released tile fills a large GPU already."""
SHARE: Final = 0.8
"""Part of the free memory that may be planned with; the rest is for what libraries take on their own."""


_WORDS: Final = (
    "out of memory", "outofmemory", "alloc_failed", "allocation_failed", "memoryallocation", "execution context",
)  # fmt: skip
"""Of errors by CUDA, CuPy, Triton, cuBLAS and cuDNN; the last is all that TensorRT says where an engine has no room."""


class Size(NamedTuple):
    """What one evaluation holds."""

    plan: TilePlan
    batch: int


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: torch's own class, or what drivers and libraries say.

    A DiqpError does not: it is somebody's conclusion already.
    """
    if isinstance(error, DiqpError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in _WORDS)


def even(count: int, batch: int) -> int:
    """The smallest batch that needs no more evaluations for ``count`` tiles than ``batch`` does."""
    batch = max(1, min(batch, count))
    return math.ceil(count / math.ceil(count / batch))


def batch_for(free: int, fixed: int, tile: int, slots: int, count: int) -> int:
    """Tiles a batch for ``free`` bytes, when each of ``slots`` takes ``fixed`` bytes and ``tile`` for each; 1 at
    least."""
    fitting = (int(free * SHARE) - fixed * slots) // max(1, tile * slots)
    return even(count, max(1, min(fitting, LARGEST_BATCH)))


def rungs(task: Task, first: Size) -> Iterator[Size]:
    """What to try in turn: ``first``, smaller batches down to 1, then smaller tiles."""
    plan, batch = first
    while True:
        yield Size(plan, batch)
        if batch == 1:
            break
        batch = even(plan.count, batch // 2)
    while (smaller := _smaller(task, plan)) is not None:
        plan = smaller
        yield Size(plan, 1)


def climb_down[T](task: Task, first: Size, build: Callable[[Size], T], trim: Callable[[], None]) -> tuple[T, Size]:
    """Build with the first size that fits. ``build`` gives back what it took when it runs out of memory; ``trim`` is
    called then, to have that memory free for whoever asks.

    Raises what else ``build`` raises, and DiqpError when the smallest does not fit, saying what to set.
    """
    size = first
    for size in rungs(task, first):
        try:
            return build(size), size
        except Exception as error:
            if not ran_out(error):
                raise
        trim()  # out here: the error knows what was made
    raise too_little(size.plan)


def too_little(plan: TilePlan) -> DiqpError:
    """What is said when not even one tile of a plan fits."""
    return DiqpError(
        f"the GPU has too little free memory even for one tile of {plan.columns.side}x{plan.rows.side} at a time; "
        "close other programs that use it, take a smaller model, or set device= to another GPU or backend='cpu'"
    )


def _smaller(task: Task, plan: TilePlan) -> TilePlan | None:
    """The plan with tiles of about half the longer side; None where they can't shrink."""
    config = task.network.config
    sides = [plan.columns.side, plan.rows.side]
    longer = sides.index(max(sides))
    half = -(-sides[longer] // 2 // config.multiple) * config.multiple
    if not 0 < half < sides[longer]:
        return None
    sides[longer] = half
    overlap = max(0, min(config.overlap, min(sides) - config.align))
    return tiles.plan(
        plan.columns.length, plan.rows.length, (sides[0], sides[1]), overlap, config.multiple, config.align
    )
