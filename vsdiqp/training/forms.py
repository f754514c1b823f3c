"""How a network in training runs on a GPU: as it is, recorded as CUDA graphs with Triton kernels for the widest maps,
or through torch.compile.

Small networks launch thousands of short kernels a step, and Python is slower than they are. Recording needs batches
that are all alike, which those of a run are.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vsdiqp.network import DiQP
from vsdiqp.network.lewin import FeedForward
from vsdiqp.training.batches import Batch, network_inputs
from vsdiqp.training.validation import autocast


def in_form(network: DiQP, form: str, batch: Batch, precision: str) -> nn.Module:
    """``network`` in a form ("eager", "graph" or "compile") for batches like this one; the same parameters."""
    torch.backends.cudnn.benchmark = True  # all batches are alike: it pays to try
    if form == "compile":
        compiler: Any = torch.compile
        compiled: nn.Module = compiler(network, dynamic=False)
        return compiled
    if form == "eager":
        return network
    if importlib.util.find_spec("triton") is not None:
        from vsdiqp.kernels.depthwise import activated

        for module in network.modules():
            if isinstance(module, FeedForward):
                module.activated = activated
    with torch.no_grad():
        inputs = network_inputs(network.config, batch)
    return Recorded(network, inputs, precision)


class Recorded(nn.Module):
    """A network whose forward and backward passes are CUDA graphs over its own copies of the inputs.

    Inputs without numbers (of guides that a network does not have) are kept apart: there is nothing to copy.
    """

    def __init__(self, network: DiQP, inputs: tuple[Tensor, ...], precision: str) -> None:
        super().__init__()
        self._used = [index for index, tensor in enumerate(inputs) if tensor.numel()]
        seen = _Seen(network, inputs, self._used)
        sample = tuple(inputs[index].clone() for index in self._used)
        record: Any = torch.cuda.make_graphed_callables
        # A recorded pass rounds the weights of its own time.
        with _others_going_on(), autocast(inputs[0].device, precision, cache=False):
            self.graphed = record(seen, sample, allow_unused_input=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `DiQP.forward`."""
        restored: Tensor = self.graphed(*(inputs[index] for index in self._used))
        return restored


@contextlib.contextmanager
def _others_going_on() -> Iterator[None]:
    """Recordings of this thread do not mind what other threads do: by default a batch that is put into page-locked
    memory meanwhile ends them. `make_graphed_callables` of torch before 2.14 leaves no choice, but records with what
    it finds in `torch.cuda`.
    """
    plain = torch.cuda.graph

    def patient(*arguments: Any, **named: Any) -> Any:
        return plain(*arguments, **{**named, "capture_error_mode": "thread_local"})

    torch.cuda.graph = patient  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.cuda.graph = plain  # type: ignore[misc]


class _Seen(nn.Module):
    """A network as a function of those of its inputs that hold numbers."""

    def __init__(self, network: DiQP, inputs: tuple[Tensor, ...], used: list[int]) -> None:
        super().__init__()
        self.network, self._inputs, self._used = network, list(inputs), used

    def forward(self, *given: Tensor) -> Tensor:
        inputs = list(self._inputs)
        for index, tensor in zip(self._used, given, strict=True):
            inputs[index] = tensor
        restored: Tensor = self.network(*inputs)
        return restored
