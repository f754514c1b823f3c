"""Growing a network: it restores what the small one did, learns with all its parts, and says what can't be grown."""

import dataclasses
from typing import Any

import pytest
import torch

from tests.network.small import SMALL_LITE, arguments, network, picture, run
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, DiQPConfig
from vsdiqp.training.growth import grow

LARGE: dict[str, Any] = {
    "name": "large",
    "widths": (12, 16, 32),
    "embed_dim": 12,
    "depths": (0, 2, 3, 1, 1),
    "heads": (1, 2, 4, 2, 1),
    "stem_blocks": 2,
    "head_blocks": 3,
}
CONFIG = dataclasses.replace(SMALL_LITE, **LARGE)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_grown_network_restores_the_same(seed: int) -> None:
    small, tile = network(SMALL_LITE), picture(64, 64, batch=2)
    grown = grow(small, CONFIG, seed).prepare()
    assert grown.config == CONFIG
    change = run(small, tile) - tile
    assert change.std() > 1e-3
    torch.testing.assert_close(run(grown, tile) - tile, change, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_a_network_gets_a_first_pass_and_does_not_look_at_the_frame_itself_at_once(count: int) -> None:
    small, tile = network(dataclasses.replace(SMALL_LITE, neighbours=count)), picture(64, 64, batch=2)
    config = dataclasses.replace(CONFIG, neighbours=count, first_pass="lite")
    grown = grow(small, config).prepare()
    assert grown.config == config
    given = arguments(small, tile)
    itself = torch.rand(*tile.shape[:1], 3, 1, *tile.shape[-2:], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        restored = grown(*given[:-1], torch.cat([itself, given[-1]], 2))
    change = small(*given) - tile
    assert change.std() > 1e-3
    torch.testing.assert_close(restored - tile, change, rtol=1e-4, atol=2e-6)


def test_where_a_first_pass_would_take_inputs_away_is_said() -> None:
    one = dataclasses.replace(SMALL_LITE, neighbours=1)
    with pytest.raises(DiqpError, match="1 neighbours on each side"):
        grow(network(one), dataclasses.replace(CONFIG, neighbours=1, first_pass="lite"))


def test_what_the_first_pass_made_of_the_frame_itself_is_learnt_from() -> None:
    grown = grow(network(SMALL_LITE), dataclasses.replace(CONFIG, first_pass="lite")).train()
    tile = picture(64, 64)
    target = tile + 0.02 * torch.randn(tile.shape, generator=torch.Generator().manual_seed(1))
    (grown(*arguments(grown, tile)) - target).square().mean().backward()
    stem, head = grown.stem.project.weight.grad, grown.head.project.weight.grad  # type: ignore[union-attr]
    assert stem[:, 9:13].any() and head[6].any() and head[11].any()


def test_copies_learn_different_things() -> None:
    """Gradients of a channel and its copy differ, or the larger network would stay as able as the small one; the parts
    that are silent at first are woken by their last layers."""
    grown = grow(network(SMALL_LITE), CONFIG).train()
    tile = picture(64, 64)
    target = tile + 0.02 * torch.randn(tile.shape, generator=torch.Generator().manual_seed(1))
    (grown(*arguments(grown, tile)) - target).square().mean().backward()
    rows = grown.encoder[1].blocks[0].ffn.expand.weight.grad  # type: ignore[union-attr,index]
    first, second = rows[:24], rows[24:]
    assert (first - second).norm() > 0.1 * first.norm()
    for layer in (grown.bottleneck.blocks[2].ffn.contract, grown.head.blocks[2].conv2):  # type: ignore[union-attr,index]
        assert not layer.weight.any() and layer.weight.grad.any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"neighbours": 2}, "neighbours is 3 and would be 2"),
        ({"widths": (12, 16, 24)}, "stage 2 has 16 channels in 2 heads and would have 24 in 4"),
        ({"heads": (1, 4, 4, 2, 1)}, "stage 1 has 8 channels in 1 heads and would have 16 in 4"),
        ({"widths": (4, 16, 32), "embed_dim": 4}, "width 0 is 8 and would be 4"),
        ({"depths": (0, 2, 1, 1, 1)}, "depth 2 is 2 and would be 1"),
        ({"stem_blocks": 0}, "stem_blocks is 1 and would be 0"),
        ({"qp_range": {"hevc": (20, 51), "av1": (40, 255)}}, "qp_range"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DiqpError, match=rf"lite can't be grown into large: {reason}"):
        grow(network(SMALL_LITE), dataclasses.replace(CONFIG, **change))


def test_networks_with_frames_together_do_not_grow() -> None:
    joint: DiQPConfig = dataclasses.replace(SMALL_LITE, joint=True)
    with pytest.raises(DiqpError, match="joint = false"):
        grow(DiQP(joint), dataclasses.replace(joint, name="other"))
