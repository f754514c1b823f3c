"""Networks small enough to run in a moment, of the kinds that are shipped, with random weights everywhere."""

import dataclasses
import tomllib
from typing import Any

import torch
from torch import Tensor

from vsdiqp.network import DiQP, DiQPConfig
from vsdiqp.training.settings import CONFIGS

LITE = DiQPConfig.from_dict(tomllib.loads((CONFIGS / "lite.toml").read_text())["network"])
SMALL_LITE = dataclasses.replace(LITE, widths=(8, 8, 16), embed_dim=8, depths=(0, 1, 2, 0, 0), heads=(1, 1, 2, 1, 1))
JOINT = dataclasses.replace(SMALL_LITE, joint=True)
ALONE = dataclasses.replace(JOINT, neighbours=0)
GUIDED = dataclasses.replace(ALONE, look_around=(3, 5), look_ahead=(4, 3), frames_ahead=3)
RELEASED = DiQPConfig(
    embed_dim=4,
    depths=(1, 2, 1),
    heads=(1, 2, 2),
    look_around=(3,),
    look_ahead=(4,),
    tile=32,
    table_rows=(86, 151, 8192, 4320, 32, 32),
)


def network(config: DiQPConfig, seed: int = 0) -> DiQP:
    """Weights that leave no part idle: where a fresh network starts at zero, small random numbers."""
    torch.manual_seed(seed)
    net = DiQP(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    return net.prepare()


def picture(height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    """B, 3, 3, H, W that looks like decoded video: a smooth picture that moves, faint noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8 + 4, width // 8 + 4, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, size=(height + 8, width + 8), mode="bicubic", align_corners=False)
    frames = [wide[:, :, 2 * n : 2 * n + height, n : n + width] for n in range(3)]
    noise = torch.randn(batch, 3, 3, height, width, generator=generator)
    return (torch.stack(frames, 2) * 0.6 + 0.2 + 0.01 * noise).clamp(0, 1)


def arguments(net: DiQP, tile: Tensor, qp: float = 37, codec: str = "hevc", **place: Any) -> tuple[Tensor, ...]:
    """Everything `forward` takes for a batch of tiles of a 640x360 frame."""
    batch, _, _, height, width = tile.shape
    where = {"left": 64, "top": 128, "width": 640, "height": 360} | place
    location, decay = net.locate(qp, codec, 10, 300, tile_h=height, tile_w=width, **where)
    thumbnails = picture(height, width, seed=9).expand(batch, -1, -1, -1, -1)
    future = picture(height, width, seed=5)[:, :, :1].expand(batch, -1, -1, -1, -1)
    ahead_tile = torch.cat([tile[:, :, 2:], future], 2)
    locations = location.view(6, 1, 1).expand(6, batch, 1)
    decays = torch.full((batch, 1, 1, 1, 1), decay)
    inputs = (tile, thumbnails[:, :, :2], ahead_tile, thumbnails[:, :, 1:], locations, decays)
    return (*inputs, neighbours(net.config, tile)) if net.config.neighbours else inputs


def neighbours(config: DiQPConfig, tile: Tensor) -> Tensor:
    """Luma beside each frame of a tile: B, 3, S, H, W, the frame itself with a little noise of its own."""
    generator = torch.Generator().manual_seed(3)
    batch, _, frames, height, width = tile.shape
    noise = torch.randn(1, frames, config.seen, height, width, generator=generator)
    return tile[:, 0, :, None] + 0.01 * noise.expand(batch, -1, -1, -1, -1)


def run(net: DiQP, tile: Tensor, **where: Any) -> Tensor:
    """`forward` without gradients."""
    with torch.inference_mode():
        return net(*arguments(net, tile, **where))
