"""The newest samples, kept on the device: batches are drawn from them faster than samples are made."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsdiqp.training.batches import Batch

SAMPLE_AXIS = {"location": 1}
"""Where tensors of a batch have their samples, if not first."""


class Reservoir:
    """A ring of ``capacity`` samples on ``device``. All batches that come in hold the same kinds of tensors."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self.made = 0
        """Samples that came in so far."""
        self.drawn = 0
        """Samples that were given so far."""
        self._tensors: dict[str, Tensor] = {}
        self._lists: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        """Samples that are there."""
        return min(self.made, self.capacity)

    def add(self, batch: Batch) -> None:
        """Take in a batch's samples; the oldest make room."""
        count = len(batch.codec)
        slots = [(self.made + index) % self.capacity for index in range(count)]
        for name, value in vars(batch).items():
            if isinstance(value, Tensor):
                axis = SAMPLE_AXIS.get(name, 0)
                if name not in self._tensors:
                    shape = list(value.shape)
                    shape[axis] = self.capacity
                    self._tensors[name] = torch.empty(shape, dtype=value.dtype, device=self.device)
                kept, start = self._tensors[name].movedim(axis, 0), 0
                value = value.movedim(axis, 0)
                while start < count:  # in runs, so that what comes from pinned memory is copied without a wait
                    first = slots[start]
                    run = min(count - start, self.capacity - first)
                    kept[first : first + run].copy_(value[start : start + run], non_blocking=True)
                    start += run
            elif isinstance(value, list):
                ring = self._lists.setdefault(name, [None] * self.capacity)
                for slot, one in zip(slots, value, strict=True):
                    ring[slot] = one
        self.made += count

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        """``count`` different samples. There must be as many."""
        chosen = rng.choice(len(self), count, replace=False)
        index = torch.from_numpy(chosen).to(self.device, non_blocking=True)
        found: dict[str, Any] = dict.fromkeys(Batch.__dataclass_fields__)
        for name, ring in self._tensors.items():
            found[name] = ring.index_select(SAMPLE_AXIS.get(name, 0), index)
        for name, values in self._lists.items():
            found[name] = [values[i] for i in chosen]
        self.drawn += count
        return Batch(**found)
