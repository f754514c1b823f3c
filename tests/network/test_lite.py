"""What is promised of our own networks: any size, any frame, any QP, and their cost."""

import dataclasses
import tomllib
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.network.small import ALONE, GUIDED, JOINT, LITE, RELEASED, SMALL_LITE, arguments, network, picture, run
from tests.stand_ins import clip_format, colour, make_run
from vsdiqp.clip import Settings
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, DiQPConfig, lewin
from vsdiqp.network.cost import kmac, parameters
from vsdiqp.network.stem import FAR_CLIP, cell_inputs, seen_beside, seen_from, stem_view
from vsdiqp.restorer import Restorer
from vsdiqp.training.settings import CONFIGS

KINDS = {"lite": SMALL_LITE, "joint": JOINT, "alone": ALONE, "guided": GUIDED, "released": RELEASED}


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest) -> DiQPConfig:
    return KINDS[request.param]


def fresh(net: DiQP, tile: Tensor) -> Tensor:
    """The output computed without anything prepared."""
    with torch.no_grad():
        return DiQP.forward(net.train(), *arguments(net, tile))


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_any_multiple_will_do(config: DiQPConfig) -> None:
    net = network(config)
    m = config.multiple
    for height, width in ((m, m), (m, 3 * m), (2 * m, m)):
        tile = picture(height, width)
        output = run(net, tile)
        assert output.shape == tile.shape and output.dtype == torch.float32
        assert torch.isfinite(output).all() and (output - tile).abs().max() > 1e-4


def test_lite_takes_tiles_of_64() -> None:
    assert LITE.multiple == 64 and LITE.align % 64 == 0


def test_a_silent_head_changes_nothing(config: DiQPConfig) -> None:
    net = network(config)
    with torch.no_grad():
        for parameter in net.head.project.parameters():
            parameter.zero_()
    tile = picture(config.multiple, config.multiple)
    assert torch.equal(run(net.prepare(), tile), tile)


def test_batch_items_do_not_meet(config: DiQPConfig) -> None:
    net = network(config)
    tile = picture(config.multiple, config.multiple, batch=3)
    together = run(net, tile)
    changed = tile.clone()
    changed[1] = changed[1].flip(-1)
    assert torch.allclose(run(net, changed)[[0, 2]], together[[0, 2]], atol=1e-6)
    for item in range(3):
        assert torch.allclose(run(net, tile[item : item + 1]), together[item : item + 1], atol=1e-5)


# -- frames ------------------------------------------------------------------------------------------------------------


def test_every_neighbour_counts_for_its_frame() -> None:
    net = network(SMALL_LITE)
    tile = picture(64, 64)
    *inputs, beside = arguments(net, tile)
    with torch.inference_mode():
        base = net(*inputs, beside)
        for frame in range(3):
            for neighbour in range(6):
                other = beside.clone()
                other[:, frame, neighbour] += 0.01
                change = (net(*inputs, other) - base).abs().amax((0, 1, 3, 4))
                assert change.argmax() == frame and change[frame] > 1e-5


def test_the_head_can_average_over_time_exactly() -> None:
    """A weight of 1/7 for each of six neighbours is their mean with the frame, but for what is clipped."""
    net = network(SMALL_LITE)
    with torch.no_grad():
        net.head.project.weight.zero_()
        net.head.project.bias.zero_()
        net.head.project.bias[6 + 4 : 6 + 10] = 1 / 7  # the wider limit's for the near ones, and the far ones'
    net.prepare()
    tile = picture(64, 64)
    *inputs, beside = arguments(net, tile, qp=37)
    beside[:, 1, 2] += 1.0  # unlike the frame: clipped
    beside[:, 1, 5] -= 1.0
    with torch.inference_mode():
        residual = net(*inputs, beside) - tile
        limits = net.lost.damage(inputs[4]) * torch.tensor([2.0] * 4 + [FAR_CLIP] * 2)[:, None, None]  # type: ignore[operator]
        expected = (beside - tile[:, 0, :, None]).clamp(-limits, limits).sum(2) / 7
    assert torch.allclose(residual[:, 0], expected, atol=1e-6)
    assert not residual[:, 1:].any()


def test_neighbours_like_their_frame_are_seen_as_nothing() -> None:
    tile = picture(64, 64)
    beside = tile[:, 0, :, None].expand(-1, -1, 6, -1, -1)
    assert not stem_view(seen_beside(tile, beside, torch.tensor([0.02])), 3).any()


@pytest.mark.parametrize("guides", [False, True], ids=["plain", "guided"])
def test_a_frame_does_not_depend_on_the_group_it_is_in(guides: bool) -> None:
    """What lite makes of a frame and its neighbours is the same first, middle or last in a group of three: nothing
    changes at the borders of groups that does not change inside them."""
    net = network(dataclasses.replace(GUIDED, neighbours=3, joint=False) if guides else SMALL_LITE)
    tile = picture(64, 64)
    *inputs, beside = arguments(net, tile)
    with torch.inference_mode():
        result = net(tile, *inputs[1:], beside)
        for order in ([2, 0, 1], [1, 1, 1]):
            mixed = net(tile[:, :, order], *inputs[1:], beside[:, order])
            assert torch.allclose(mixed, result[:, :, order], atol=1e-6)
        assert (result[:, :, 0] - tile[:, :, 0] - result[:, :, 2] + tile[:, :, 2]).abs().max() > 1e-4


def test_flat_surroundings_are_left_alone() -> None:
    """Black bars and flat fills stay what they are, to the bit; beside a detail the network works as elsewhere."""
    net = network(SMALL_LITE)
    tile = picture(128, 128)
    *inputs, beside = arguments(net, tile)
    inputs[0] = barred = tile.clone()
    barred[..., :48, :] = torch.tensor([0.0, 0.5, 0.5]).view(1, 3, 1, 1, 1)
    speck = barred.clone()
    speck[:, 0, 1, 4, 4] = 1 / 255
    with torch.inference_mode():
        plain, specked = net(*inputs, beside), net(speck, *inputs[1:], beside)
    changed = (plain != barred).any(1)
    assert not changed[..., :40, :].any(), "a block of 8 rows beside the picture is restored"
    assert changed[..., 40:, :].float().mean() > 0.9
    there = (specked != speck).any(1)[:, 1]
    assert there[:, :16, :16].float().mean() > 0.9 and not there[:, :32, 32:].any()


def test_patterns_of_two_levels_are_left_alone() -> None:
    """Codecs keep them but for a code or two. A sample between the levels, and levels that are near, are restored."""
    net = network(SMALL_LITE)
    tile = picture(128, 128)
    generator = torch.Generator().manual_seed(4)
    pattern, codes = (torch.randint(0, n, (3, 128, 128), generator=generator) for n in (2, 3))
    tile[:, 0] = 0.1 + 0.6 * pattern + codes * (1 - 2 * pattern) / 255
    tile[:, 0, 1, 4, 4] = 0.4
    *inputs, beside = arguments(net, tile)
    near = tile.clone()
    near[:, 0] = 0.1 + 0.1 * pattern
    with torch.inference_mode():
        changed = (net(*inputs, beside) != tile)[0, 0]
        changed_near = (net(near, *inputs[1:], beside) != near)[0, 0]
    assert changed[1, :16, :16].float().mean() > 0.9 and changed_near.float().mean() > 0.9
    assert not changed[0].any() and not changed[1, :, 16:].any()


def test_black_and_white_stays_black_and_white() -> None:
    """Where chroma is flat it is left alone, while luma is restored."""
    net = network(SMALL_LITE)
    tile = picture(64, 64)
    tile[:, 1:] = 0.5
    output = run(net, tile)
    assert torch.equal(output[:, 1:], tile[:, 1:]) and (output[:, 0] != tile[:, 0]).float().mean() > 0.9


@pytest.mark.parametrize("config", [ALONE, GUIDED, RELEASED], ids=["alone", "guided", "released"])
def test_every_frame_counts_for_every_frame(config: DiQPConfig) -> None:
    net = network(config)
    tile = picture(config.multiple, config.multiple)
    base = run(net, tile) - tile
    for frame in range(3):
        other = tile.clone()
        other[:, :, frame] += 0.02 * torch.randn(other[:, :, frame].shape, generator=torch.Generator().manual_seed(1))
        change = (run(net, other) - other - base).abs().amax((0, 1, 3, 4))
        assert (change > 1e-5).all(), f"frame {frame} leaves {change.tolist()}"


def test_the_ends_of_a_triplet_are_mirror_images() -> None:
    """Played backwards, the cells' features are those of the forward clip, backwards."""
    cells = cell_inputs(picture(64, 96), torch.tensor([0.02]))
    forward = seen_from(cells).unflatten(0, (1, 3))
    backward = seen_from(cells.unflatten(0, (1, 3)).flip(1).flatten(0, 1)).unflatten(0, (1, 3)).flip(1)
    assert torch.equal(forward[:, [0, 2]], backward[:, [0, 2]])


def test_what_stands_still_differs_from_no_other_frame() -> None:
    still = picture(64, 64)[:, :, :1].expand(-1, -1, 3, -1, -1)
    assert not seen_from(cell_inputs(still, torch.tensor([0.02]))).any()


def test_level_and_brightness_are_taken_off() -> None:
    """Cells are fed as differences to their surroundings: a brighter clip looks the same but for its mean."""
    tile, damage = picture(64, 64), torch.tensor([0.02])
    dark, bright = cell_inputs(tile, damage), cell_inputs(tile + 0.125, damage)
    assert torch.allclose(dark[:, :6], bright[:, :6], atol=1e-4)
    assert torch.allclose(bright[:, 6:] - dark[:, 6:], torch.tensor(0.125), atol=1e-5)


def test_damage_is_the_unit() -> None:
    """Twice the contrast at twice the expected damage is the same picture to the network."""
    tile = picture(64, 64)
    twice = 0.5 + 2 * (tile - 0.5)
    one, two = cell_inputs(tile, torch.tensor([0.02])), cell_inputs(twice, torch.tensor([0.04]))
    assert torch.allclose(one[:, :6], two[:, :6], atol=1e-4)


# -- location ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (640, 360), (7680, 4320), (16384, 9000)])
def test_a_continuous_location_knows_every_size(size: tuple[int, int]) -> None:
    net = network(SMALL_LITE)
    assert SMALL_LITE.max_size is None
    tile = picture(64, 64)
    for left, top in ((0, 0), (size[0] - 1, size[1] - 1)):
        output = run(net, tile, left=left, top=top, width=size[0], height=size[1])
        assert torch.isfinite(output).all() and (output - tile).abs().max() < 0.5


def test_tables_refuse_what_they_do_not_know() -> None:
    with pytest.raises(DiqpError, match=r"8193x100.*8192x4320"):
        network(RELEASED).locate(30, "hevc", 10, 300, 0, 0, 8193, 100, 32, 32)


def test_clip_length_and_place_of_a_table_location() -> None:
    """A 300-frame clip gets what the network was trained with; longer ones are told apart in their last 299 frames."""
    net = network(RELEASED)

    def frame_of(middle: int, frames: int) -> tuple[float, float]:
        location, decay = net.locate(30, "hevc", middle, frames, 0, 0, 640, 360, 32, 32)
        return location[1].item(), decay

    assert frame_of(100, 300) == (50, pytest.approx(200 / 300))
    assert frame_of(10_000 - 300 + 100, 10_000) == frame_of(100, 300)
    assert frame_of(5, 10_000) == frame_of(9_000, 10_000) == (0, pytest.approx(299 / 300))


@pytest.mark.parametrize(
    ("config", "codec", "low", "high"),
    [(SMALL_LITE, "hevc", 12, 51), (SMALL_LITE, "av1", 40, 255), (RELEASED, "hevc", 3, 51)],
)
def test_qps_outside_the_trained_range_are_those_at_its_ends(
    config: DiQPConfig, codec: str, low: int, high: int
) -> None:
    net = network(config)

    def at(qp: float) -> list[float]:
        return net.locate(qp, codec, 10, 300, 0, 0, 640, 360, 64, 64)[0].tolist()

    assert at(low - 5) == at(0) == at(low) != at((low + high) / 2)
    assert at(high + 5) == at(high) != at((low + high) / 2)


def test_qp_and_codec_matter() -> None:
    net = network(SMALL_LITE)
    tile = picture(64, 64)
    outputs = [run(net, tile, qp=qp, codec=codec) for qp, codec in ((30, "hevc"), (33, "hevc"), (160, "av1"))]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-5 and (outputs[0] - outputs[2]).abs().max() > 1e-5


@pytest.mark.parametrize("config", [SMALL_LITE, RELEASED])
def test_unknown_codecs_are_refused(config: DiQPConfig) -> None:
    with pytest.raises(DiqpError, match=r"'vp9'.*hevc"):
        network(config).locate(30, "vp9", 10, 300, 0, 0, 640, 360, 64, 64)


def test_confidence_ends_below_the_trained_range() -> None:
    net = network(SMALL_LITE)
    for codec, (low, high) in SMALL_LITE.qp_range.items():
        assert net.confidence(low, codec) == net.confidence(high, codec) == net.confidence(high + 9, codec) == 1
        below = [net.confidence(low * share, codec) for share in (1, 0.95, 0.85, 0.75, 0.5, 0)]
        assert below == sorted(below, reverse=True) and below[1] < 1 and below[3:] == [0, 0, 0]


def test_expected_damage_grows_with_qp() -> None:
    net = DiQP(LITE)
    for codec, (low, high) in LITE.qp_range.items():
        qps = torch.linspace(low, high, 12).tolist()
        locations = [net.locate(qp, codec, 1, 3, 0, 0, 64, 64, 64, 64)[0] for qp in qps]
        damage = net.lost.damage(torch.stack(locations, 1)[..., None])  # type: ignore[operator]
        assert (damage.diff() > 0).all() and 1e-3 < damage[0] < damage[-1] < 0.1


# -- cost --------------------------------------------------------------------------------------------------------------


def test_cost_is_counted_as_by_hand() -> None:
    """A network without blocks and guides, layer by layer: convolutions and linear layers at their level's pixels."""
    config = dataclasses.replace(JOINT, depths=(0,) * 5, stem_blocks=0, head_blocks=0, tile=64)
    cells, halves, quarters = 32**2, 16**2, 8**2
    by_hand = cells * 3 * 9 * (32 * 8 + 8 * 16)  # stem and head, a frame
    # Three frames in, three out. Down: 2x2 patches of level 0 to a cell of level 1; up: the same pairs backwards.
    by_hand += 9 * (halves * 4 * 9 * 8 + quarters * 4 * 9 * 16 + quarters * 4 * 17 * 8 + halves * 4 * 9 * 8)
    by_hand += 2 * (9 * 64 + 64 * 64) + 64 * 16 * 5 + 3 * 2  # the location: its vector twice, pattern, damage
    assert kmac(config) * 1000 * 3 * 64 * 64 == pytest.approx(by_hand)
    # Frame by frame the maps between are a third as wide, three times as often.
    apart = by_hand - (9 - 3) * (
        halves * 4 * 9 * 8 + quarters * 4 * 9 * 16 + quarters * 4 * 17 * 8 + halves * 4 * 9 * 8
    )
    assert kmac(dataclasses.replace(config, joint=False)) * 1000 * 3 * 64 * 64 == pytest.approx(apart)


@pytest.mark.parametrize(("name", "limit"), [("lite", 20), ("base", 150), ("released", 800)])
def test_cost_of_shipped_configurations(name: str, limit: float) -> None:
    config = DiQPConfig.from_dict(tomllib.loads((CONFIGS / f"{name}.toml").read_text())["network"])
    assert 0.5 * limit < kmac(config) <= limit


def test_size_of_the_released_network() -> None:
    assert parameters(DiQPConfig()) == 79_373_074


# -- precision, preparation, export ------------------------------------------------------------------------------------


def test_bf16_is_close_to_fp32() -> None:
    """In units of the damage that the network is to remove: a twentieth of it at most, a hundredth on average."""
    net = network(LITE)
    tile = picture(128, 128)
    expected = run(net, tile) - tile
    location, _ = net.locate(37, "hevc", 10, 300, 64, 128, 640, 360, 128, 128)
    damage = net.lost.damage(location.view(6, 1, 1)).item()  # type: ignore[operator]
    output = run(net.to_precision(torch.bfloat16), tile)
    assert output.dtype == torch.float32
    error = (output - tile - expected).abs() / damage
    assert error.max() < 0.05 and error.square().mean().sqrt() < 0.01
    assert error.max() > 0, "nothing was rounded"


def test_prepared_weights_never_go_stale(config: DiQPConfig) -> None:
    net = network(config)
    tile = picture(config.multiple, config.multiple)
    before = run(net, tile)
    assert torch.allclose(fresh(net, tile), before, atol=1e-5)
    optimiser = torch.optim.SGD(net.train().parameters(), lr=1.0)
    (net(*arguments(net, tile)) - tile).square().mean().mul(1000).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
    optimiser.step()
    after = run(net.prepare(), tile)
    assert (after - before).abs().max() > 1e-4
    assert torch.allclose(fresh(net, tile), after, atol=1e-5)


def test_restoring_between_steps_does_not_hinder_training(config: DiQPConfig) -> None:
    """What inference makes and keeps (masks, biases) is no obstacle to a later backward pass."""
    net = network(config)
    tile = picture(config.multiple, config.multiple)
    run(net, tile)
    net.train()
    net(*arguments(net, tile)).square().mean().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None]
    assert not idle


@pytest.mark.parametrize("kind", ["lite", "released"])
def test_export(kind: str) -> None:
    """The network is one graph for torch.export, and stays usable afterwards."""
    config = KINDS[kind]
    net = network(config)
    tile = picture(config.multiple, config.multiple)
    given = arguments(net, tile)
    lewin._kept_shift_mask.cache_clear()  # else what earlier tests made would hide what tracing leaves behind
    with torch.no_grad():
        exported = torch.export.export(net, given).module()
        expected = net(*given)
        assert torch.allclose(exported(*given), expected, atol=1e-5)


# -- guides ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [GUIDED, RELEASED])
def test_guides_are_looked_at_and_made_once_a_group(config: DiQPConfig) -> None:
    net = network(config)
    m = config.multiple
    given = list(arguments(net, picture(m, 2 * m, batch=2)))
    with torch.inference_mode():
        whole = net(*given)
        guides = net.frame_guides(given[1][:1], given[3][:1], given[5][:1])
        assert torch.allclose(net.restore(given[0], given[2], guides, given[4], given[5]), whole, atol=1e-5)
        for index in (1, 2, 3):
            changed = list(given)
            changed[index] = given[index].flip(-1)
            assert (net(*changed) - whole).abs().max() > 1e-5


def test_a_network_with_guides_restores_frames() -> None:
    clip = clip_format("YUV", 8, (1, 1), (160, 96))
    net = network(GUIDED)
    for tile in (None, (64, 128)):
        job = make_run(clip, colour())
        restorer = Restorer(Settings(backend="cpu", precision="fp32", tile=tile), clip, net)
        assert restorer.look_ahead == 3
        restorer.restore(job)
        assert all((source[0] != target[0]).any() for source, target in zip(job.frames, job.targets, strict=True))


# -- configurations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (1, 2)}, "odd number"),
        ({"heads": (1, 2, 4)}, "3 head counts"),
        ({"heads": (2, 5, 3, 2, 2)}, "stage 1 has 48 channels, which 5 heads"),
        ({"widths": (8, 16)}, "3 widths"),
        ({"look_around": (7,)}, "look_around needs 2"),
        ({"look_ahead": (7, 10, 13)}, "look_ahead needs 2"),
        ({"skip": "multiply"}, "concat, add"),
        ({"colour": "rgb"}, "stem_scale"),
        ({"stem_scale": 4}, "stem_scale"),
        ({"location": "tables"}, "continuous"),
        ({"stem_scale": 1}, "stem_blocks"),
        ({"depthwise_taps": 5, "joint": True}, "depthwise_taps"),
        ({"depthwise_taps": 3}, "joint"),
        ({"neighbours": 0}, "joint"),
        ({"neighbours": 0, "joint": True, "first_pass": "lite"}, "first_pass is 'lite'"),
        ({"down_kernel": 3}, "down_kernel"),
        ({"codecs": ("hevc",)}, "qp_range"),
        ({"qp_range": {"hevc": (51, 12), "av1": (40, 255)}}, "qp_range of hevc"),
    ],
)
def test_sizes_that_make_no_network_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DiqpError, match=message):
        dataclasses.replace(LITE, **change)
