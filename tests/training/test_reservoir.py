"""The reservoir: samples stay whole, the newest replace the oldest, and batches come out as they went in."""

import numpy as np
import torch

from vsdiqp.training.batches import Batch
from vsdiqp.training.reservoir import Reservoir


def numbered(first: int, count: int) -> Batch:
    """Samples whose every part carries their number."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)

    def part(*shape: int) -> torch.Tensor:
        return numbers.view(-1, *[1] * len(shape)).expand(-1, *shape).clone()

    return Batch(
        luma=part(3, 4, 4), chroma=part(2, 3, 2, 2), luma_true=part(3, 4, 4), chroma_true=part(2, 3, 2, 2),
        error=part(3, 3), typical=part(), location=part(6, 1).movedim(0, 1), decay=part(1, 1, 1, 1), qp=part(),
        codec=[f"codec {first + index}" for index in range(count)], whole=None, ahead=None,
        matrix=list(range(first, first + count)), beside=part(3, 6, 4, 4),
    )  # fmt: skip


def test_samples_stay_whole_and_the_newest_stay() -> None:
    kept, rng = Reservoir(10, torch.device("cpu")), np.random.default_rng(1)
    for first in range(0, 28, 4):
        kept.add(numbered(first, 4))
    assert len(kept) == 10 and kept.made == 28
    drawn = kept.draw(10, rng)
    numbers = drawn.qp.tolist()
    assert sorted(numbers) == list(range(18, 28))
    for index, number in enumerate(numbers):
        parts = [drawn.luma, drawn.chroma, drawn.luma_true, drawn.error, drawn.decay, drawn.beside]
        assert all((part[index] == number).all() for part in parts)
        assert (drawn.location[:, index] == number).all()
        assert drawn.codec[index] == f"codec {number:.0f}" and drawn.matrix[index] == number
    assert drawn.whole is None and drawn.location.shape == (6, 10, 1)


def test_a_batch_larger_than_what_is_left_of_the_ring_wraps() -> None:
    kept = Reservoir(7, torch.device("cpu"))
    kept.add(numbered(0, 5))
    kept.add(numbered(5, 5))
    assert sorted(kept.draw(7, np.random.default_rng(0)).qp.tolist()) == [3, 4, 5, 6, 7, 8, 9]


def test_what_is_drawn_does_not_change_when_more_comes_in() -> None:
    kept = Reservoir(4, torch.device("cpu"))
    kept.add(numbered(0, 4))
    drawn = kept.draw(4, np.random.default_rng(0))
    before = drawn.luma.clone()
    kept.add(numbered(4, 4))
    assert torch.equal(drawn.luma, before) and kept.drawn == 4
