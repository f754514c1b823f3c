"""The closed-form teacher: finds a linear filter where there is one, and survives its file."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from material import moving_clip
from torch import Tensor

from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, read_config
from vsdiqp.training import teacher
from vsdiqp.training.dataset import DecodedItem, DecodedStream, PoolDataset
from vsdiqp.training.degrade import Clip

SIDE, FRAMES, QP = 96, 5, 37.0


def blurred(y: np.ndarray) -> np.ndarray:
    """Mean of 3x3, edges repeated."""
    padded = np.pad(y, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return sum(padded[:, i : i + y.shape[1], j : j + y.shape[2]] for i in range(3) for j in range(3)) / 9


class Blurring:
    """Items whose truth is a known linear filter of what was decoded: a 3x3 mean of noise on a picture."""

    def __len__(self) -> int:
        return 6

    def load_item(self, index: int) -> DecodedItem:
        clip = moving_clip(FRAMES, SIDE, bits=10, seed=index)
        noise = np.random.default_rng(index).normal(0, 20, clip.y.shape)
        decoded = np.clip(clip.y + noise, 0, 1023).round()
        truth = Clip(blurred(decoded).round().astype(np.uint16), clip.c, 10)
        seen = Clip(decoded.astype(np.uint16), clip.c, 10)
        qps = np.full(FRAMES, QP, np.float32)
        streams = tuple(
            DecodedStream(seen, codec, qp, qps * (qp / QP), True, "", "", "cqp", True, 0)
            for codec, qp in (("hevc", QP), ("av1", 150.0))
        )
        return DecodedItem(index, truth, streams, 1, (), ())


def triplet(item: DecodedItem) -> tuple[Tensor, Tensor]:
    """Decoded luma 0..1 of three frames, and the truth of the middle one."""
    decoded = (torch.from_numpy(item.degraded[0].clip.y[1:4].astype(np.float32)) - 64) / 876
    return decoded, (torch.from_numpy(item.source.y[2].astype(np.float32)) - 64) / 876


@pytest.fixture(scope="module")
def fitted() -> teacher.Teacher:
    return teacher.fit(Blurring(), limit=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("codec", "qp"), [("hevc", QP), ("av1", 150.0)])
def test_a_linear_filter_is_found(fitted: teacher.Teacher, codec: str, qp: float) -> None:
    """On an item that it was not fitted on."""
    order = np.random.default_rng(0).permutation(6)[:5].tolist()
    (unseen,) = set(range(6)) - set(order)
    frames, truth = triplet(Blurring().load_item(unseen))
    before = (frames[1] - truth).square().mean()
    after = (frames[1] + fitted.residual(frames, qp, codec) - truth).square().mean()
    assert 10 * torch.log10(before / after) > 6


def test_round_trip(fitted: teacher.Teacher, tmp_path: Path) -> None:
    fitted.save(tmp_path / "t.safetensors")
    again = teacher.Teacher.load(tmp_path / "t.safetensors")
    frames, _ = triplet(Blurring().load_item(0))
    assert torch.equal(again.residual(frames, 30, "hevc"), fitted.residual(frames, 30, "hevc"))


def test_bands_are_mixed_without_steps(fitted: teacher.Teacher) -> None:
    frames, _ = triplet(Blurring().load_item(0))
    middle = teacher.CENTRES["hevc"][3]
    below, at, above = (fitted.residual(frames, middle + d, "hevc") for d in (-0.01, 0, 0.01))
    # On average: single pixels may change their class, whose limits are in units of damage.
    assert at.square().mean() > 0
    assert max((below - at).square().mean(), (above - at).square().mean()) < 1e-3 * at.square().mean()
    assert torch.equal(fitted.residual(frames, 2, "hevc"), fitted.residual(frames, 12, "hevc"))


@pytest.mark.parametrize(("codec", "qp"), [("hevc", 5), ("hevc", 17), ("hevc", 37), ("hevc", 51), ("av1", 255)])
def test_shares_of_the_bands_are_whole(codec: str, qp: float) -> None:
    mixture = teacher.mixture(codec, qp)
    assert sum(share for _, share in mixture) == pytest.approx(1)
    assert all(0 <= share <= 1 and 0 <= band < len(teacher.CENTRES[codec]) for band, share in mixture)


def test_flat_pictures_are_left_alone(fitted: teacher.Teacher) -> None:
    """All features are differences: where there are none there is nothing to add."""
    assert fitted.residual(torch.full((3, 64, 64), 0.4), 37, "hevc").abs().max() < 1e-6


def test_classes_tell_grid_activity_and_direction() -> None:
    flat = teacher.classify(torch.zeros(1, 32, 32))[0]
    assert flat[8, 8] != flat[10, 10] and flat[8, 8] == flat[16, 15] and flat[10, 10] == flat[20, 20]
    ramp = torch.arange(32.0).expand(32, 32)
    across, down = (teacher.classify(x[None])[0][10, 10] for x in (ramp, ramp.t()))
    busy = teacher.classify(20 * ramp[None])[0][10, 10]
    assert len({int(across), int(down), int(busy), int(flat[10, 10])}) == 4
    for value in (flat, across, down, busy):
        assert value.min() >= 0 and value.max() < teacher.CLASSES


def test_fitting_on_a_pool(small_pool: Path) -> None:
    fitted = teacher.fit(PoolDataset(small_pool), limit=2)
    assert all(torch.isfinite(filters).all() for filters in fitted.filters.values())
    assert {codec: filters.shape[1:] for codec, filters in fitted.filters.items()} == dict.fromkeys(
        ("hevc", "av1"), (teacher.CLASSES, teacher.FEATURES)
    )


def test_a_shipped_network_is_a_teacher_by_name() -> None:
    lite = read_config("lite")
    assert isinstance(teacher.load_teacher("lite", lite), DiQP)
    with pytest.raises(DiqpError, match=r"neighbours 3.*0"):
        teacher.load_teacher("lite", dataclasses.replace(lite, neighbours=0, joint=True))
