"""Growing a trained network into a larger one that computes the same, to go on from there.

Source: Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer" (ICLR 2016). A wider layer
holds copies of its channels, and whatever reads them shares its weight out among the copies; random shares, unlike the
paper's equal ones, keep copies from learning the same for ever. A deeper stage gets blocks that add nothing at first.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, DiQPConfig
from vsdiqp.network.lewin import LeWinBlock, Stage
from vsdiqp.network.stem import (
    CELL_INPUTS,
    CELL_OUTPUTS,
    CLIPS,
    CellHead,
    CellStem,
    FrameBlock,
    beside_inputs,
    near_and_far,
    pattern_channels,
)

_SAME = (
    *("colour", "codecs", "qp_range", "neighbours", "first_pass", "location", "stem_scale", "levels", "joint", "skip"),
    *("down_kernel", "window", "mlp_ratio", "depthwise_taps", "uses_around", "uses_ahead"),
)
"""What two networks must share for one to grow into the other."""


def copies(small: int, large: int) -> Tensor:
    """For each of ``large`` channels the one of ``small`` that it copies: all once, then all again, as far as it goes.

    Whole heads of attention are copied where their size stays.
    """
    return torch.arange(large) % small


def shares(source: Tensor, rows: int, random: torch.Generator) -> Tensor:
    """rows, len(source): by how much each copy counts; those of one channel sum to 1 in every row."""
    share = torch.rand(rows, len(source), generator=random) + 1e-3
    total = torch.zeros(rows, int(source.max()) + 1).index_add_(1, source, share)
    return share / total[:, source]


class _Grower:
    """Fills ``large`` with what ``small`` computes. Maps are what `copies` returns."""

    def __init__(self, small: DiQP, large: DiQP, seed: int):
        self.small, self.large = small, large
        self.random = torch.Generator().manual_seed(seed)
        pairs = zip(_widths(small.config), _widths(large.config), strict=True)
        self.maps = [copies(*pair) for pair in pairs]

    def layer(self, small: nn.Module, large: nn.Module, rows: Tensor | None, columns: Tensor | None) -> None:
        """Weight (rows, columns, ...) and bias (rows) of a linear layer or convolution; None: that side stays."""
        weight, bias = _tensor(small, "weight").float(), _tensor(small, "bias")
        if rows is not None:
            weight, bias = weight[rows], bias[rows]
        if columns is not None:
            share = shares(columns, weight.shape[0], self.random)
            weight = weight[:, columns] * share.view(*share.shape, *[1] * (weight.dim() - 2))
        _tensor(large, "weight").copy_(weight)
        _tensor(large, "bias").copy_(bias)

    def frame_blocks(self, small: nn.ModuleList, large: nn.ModuleList) -> None:
        """Residual convolution blocks of stem or head."""
        channels = self.maps[0]
        for index, block in enumerate(large):
            assert isinstance(block, FrameBlock)
            if index >= len(small):
                _silence(block.conv2)
                continue
            own = small[index]
            assert isinstance(own, FrameBlock)
            self.layer(own.conv1, block.conv1, channels, channels)
            self.layer(own.conv2, block.conv2, channels, channels)
            # Its rows are scales, then shifts.
            self.layer(own.modulate, block.modulate, torch.cat([channels, channels + own.conv1.out_channels]), None)

    def stage(self, small: nn.Module, large: nn.Module, channels: Tensor) -> None:
        """The LeWin blocks of a level."""
        assert isinstance(small, Stage) and isinstance(large, Stage)
        for index, block in enumerate(large.blocks):
            assert isinstance(block, LeWinBlock)
            if index >= len(small.blocks):
                _silence(block.attn.proj)
                _silence(block.ffn.contract)
                continue
            own = small.blocks[index]
            assert isinstance(own, LeWinBlock)
            for name in ("norm1", "norm2"):
                self.layer(getattr(own, name), getattr(block, name), channels, None)
            size = int(channels.max()) + 1
            self.layer(own.attn.to_q, block.attn.to_q, channels, channels)
            self.layer(own.attn.to_kv, block.attn.to_kv, torch.cat([channels, channels + size]), channels)
            self.layer(own.attn.proj, block.attn.proj, channels, channels)
            heads = copies(own.attn.heads, block.attn.heads)
            block.attn.bias_table.copy_(own.attn.bias_table[:, heads])
            hidden = copies(own.ffn.expand.out_features, block.ffn.expand.out_features)
            self.layer(own.ffn.expand, block.ffn.expand, hidden, channels)
            self.layer(own.ffn.depthwise, block.ffn.depthwise, hidden, None)
            self.layer(own.ffn.contract, block.ffn.contract, channels, hidden)

    def run(self) -> None:
        """Everything, from stem to head."""
        small, large, maps = self.small, self.large, self.maps
        assert isinstance(small.stem, CellStem) and isinstance(large.stem, CellStem)
        assert isinstance(small.head, CellHead) and isinstance(large.head, CellHead)
        large.lost.load_state_dict(small.lost.state_dict())
        self.layer(small.stem.project, large.stem.project, maps[0], None)
        self.frame_blocks(small.stem.blocks, large.stem.blocks)
        levels = small.config.levels
        for i in range(levels):
            self.stage(small.encoder[i], large.encoder[i], maps[i])
            self.layer(small.down[i], large.down[i], maps[i + 1], _and_location(maps[i]))
        self.stage(small.bottleneck, large.bottleneck, maps[levels])
        for i in range(levels):
            level = levels - 1 - i
            size = int(maps[level].max()) + 1
            children = torch.cat([maps[level] + child * size for child in range(4)])
            below = _and_location(maps[level + 1])
            self.layer(_child(small.up[i], "project"), _child(large.up[i], "project"), children, below)
            self.stage(small.decoder[i], large.decoder[i], maps[level])
        self.frame_blocks(small.head.blocks, large.head.blocks)
        self.layer(small.head.project, large.head.project, None, maps[0])


def grow(network: DiQP, config: DiQPConfig, seed: int = 0) -> DiQP:
    """A network of the larger ``config`` that restores what ``network`` restores, up to rounding, ready to be trained.

    Both let frames through one by one (``joint = false``), see the same inputs and have the same levels; widths,
    depths, heads and convolution blocks may grow, and a first pass may come before (`with_first_pass`). Widths of
    levels with blocks grow to whole multiples, with heads of the same size: layer norms and attention compute the same
    only then. Raises DiqpError naming what does not fit.
    """
    if config.first_pass and network.config.neighbours and not network.config.first_pass:
        network = with_first_pass(network, config.first_pass)
    reason = _misfit(network.config, config)
    if reason:
        raise DiqpError(f"{network.config.name} can't be grown into {config.name}: {reason}")
    large = DiQP(config)
    with torch.no_grad():
        _Grower(network, large, seed).run()
    return large


def with_first_pass(network: DiQP, first_pass: str) -> DiQP:
    """``network`` with a frame more beside each: what ``first_pass`` makes of the frame itself, not looked at yet.

    The network has neighbours and no first pass. Raises DiqpError where the frame would take channels away from the
    location's pattern, which fills the stem's inputs up to a multiple of 16.
    """
    large = DiQP(replace(network.config, first_pass=first_pass))
    old, state = network.state_dict(), large.state_dict()
    seen = network.config.seen
    near, far = near_and_far(seen)
    channels, more = pattern_channels(seen), pattern_channels(seen + 1)
    if more < channels:
        raise DiqpError(
            f"{network.config.name} has {network.config.neighbours} neighbours on each side: a first pass would leave "
            f"fewer of the stem's inputs to the location; networks with 2 or 3 can be given one"
        )
    # The frame's own samples come before those of its neighbours: whatever follows moves up.
    inputs = torch.arange(old["stem.project.weight"].shape[1])
    inputs[CELL_INPUTS:] += beside_inputs(seen + 1) - beside_inputs(seen)
    answers = torch.arange(CELL_OUTPUTS + len(CLIPS) * near + far)
    for limit in range(len(CLIPS)):
        answers[CELL_OUTPUTS + limit * near :] += 1
    for name, tensor in old.items():
        own = state[name]
        if name == "stem.project.weight":
            own.zero_()[:, inputs] = tensor
        elif name.startswith("head.project."):
            own.zero_()[answers] = tensor[: len(answers)]
        elif name.startswith("lost.project."):
            # The pattern may have more channels. They are ready to be used: the stem's weights for them are zero.
            torch.unflatten(own, 0, (-1, more))[:, :channels] = torch.unflatten(tensor, 0, (-1, channels))
        else:
            own.copy_(tensor)
    large.load_state_dict(state)
    return large


def _misfit(small: DiQPConfig, large: DiQPConfig) -> str:
    """Why one can't be grown into the other; empty where it can."""
    for name in _SAME:
        if getattr(small, name) != getattr(large, name):
            return f"{name} is {getattr(small, name)!r} and would be {getattr(large, name)!r}; it must stay"
    if small.joint or small.stem_scale == 1 or small.skip != "add" or small.uses_around or small.uses_ahead:
        return "only networks with joint = false, stem_scale 2, skip 'add' and no guides can"
    sizes = [
        ("stem_blocks", small.stem_blocks, large.stem_blocks),
        ("head_blocks", small.head_blocks, large.head_blocks),
    ]
    sizes += [(f"width {i}", *pair) for i, pair in enumerate(zip(_widths(small), _widths(large), strict=True))]
    sizes += [(f"depth {i}", *pair) for i, pair in enumerate(zip(small.depths, large.depths, strict=True))]
    for name, old, new in sizes:
        if new < old:
            return f"{name} is {old} and would be {new}; give {old} or more"
    for index, depth in enumerate(small.depths):
        old, new = small.stage_channels(index), large.stage_channels(index)
        heads = small.heads[index], large.heads[index]
        if depth and (new % old or old * heads[1] != new * heads[0]):
            return (
                f"stage {index} has {old} channels in {heads[0]} heads and would have {new} in {heads[1]}; give a "
                f"multiple of the channels and as many times the heads"
            )
    return ""


def _widths(config: DiQPConfig) -> list[int]:
    return [config.width(level) for level in range(config.levels + 1)]


def _and_location(channels: Tensor) -> Tensor:
    """The map of a level's tokens with the location's channel after them."""
    return torch.cat([channels, channels.max()[None] + 1])


def _silence(layer: nn.Module) -> None:
    nn.init.zeros_(_tensor(layer, "weight"))
    nn.init.zeros_(_tensor(layer, "bias"))


def _tensor(layer: nn.Module, name: str) -> Tensor:
    tensor = getattr(layer, name)
    assert isinstance(tensor, Tensor)
    return tensor


def _child(layer: nn.Module, name: str) -> nn.Module:
    child = getattr(layer, name)
    assert isinstance(child, nn.Module)
    return child
