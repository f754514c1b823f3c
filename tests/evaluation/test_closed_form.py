"""The closed-form reference: it learns what least squares can, keeps its hands off what it has not seen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.closed_form import (
    CENTRES,
    CLASSES,
    FEATURES,
    ClosedForm,
    Fitter,
    Sample,
    classify,
    correct,
    features,
)
from vsdiqp.evaluation.metrics import psnr


def sample(seed: int, qp: float = 37, codec: str = "hevc", noise: float = 0.02) -> Sample:
    """A smooth picture with independent noise on three frames of it: neighbours and surroundings tell the truth."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:96, 0:120].astype(np.float32)
    wave = 0.5 + 0.2 * np.sin(rows / rng.uniform(6, 12)) * np.cos(columns / rng.uniform(6, 12))
    clean = wave.astype(np.float32)
    before, current, after = (clean + rng.normal(0, noise, clean.shape).astype(np.float32) for _ in range(3))
    return Sample(codec, qp, before, current, after, clean)


def fitted(qps: tuple[float, ...] = (37,)) -> ClosedForm:
    fitter = Fitter()
    for qp in qps:
        for seed in range(4):
            fitter.add(sample(seed, qp))
    return fitter.solve("test", least_pixels=500)


def apply(restorer: ClosedForm, s: Sample) -> np.ndarray:
    return correct(restorer.at(s.codec, s.qp), s.before, s.current, s.after)


def test_it_removes_noise_it_has_not_seen() -> None:
    s = sample(99)
    assert psnr(apply(fitted(), s), s.source) > psnr(s.current, s.source) + 6


def test_zero_filters_change_nothing() -> None:
    s = sample(1)
    zeros = np.zeros((CLASSES, FEATURES), np.float32)
    assert np.array_equal(correct(zeros, s.before, s.current, s.after), s.current)


def test_strength_scales_the_residual() -> None:
    s, filters = sample(1), fitted().at("hevc", 37)
    full = correct(filters, s.before, s.current, s.after) - s.current
    half = correct(filters, s.before, s.current, s.after, strength=0.5) - s.current
    np.testing.assert_allclose(half, full / 2, atol=1e-6)


def test_classes_not_seen_keep_their_hands_off() -> None:
    fitter = Fitter()
    fitter.add(sample(0))
    assert not fitter.solve("test", least_pixels=10**9).at("hevc", 37).any()


def test_flat_pictures_stay_flat() -> None:
    flat = np.full((40, 40), 0.5, np.float32)
    np.testing.assert_allclose(correct(fitted().at("hevc", 37), flat, flat, flat), flat, atol=1e-7)


def test_stripes_do_not_show() -> None:
    # Taller than a stripe: every row must be what it is in a picture cut at another place.
    rng = np.random.default_rng(0)
    frames = [rng.random((150, 24), np.float32) for _ in range(3)]
    whole = features(*frames, 0, 150).reshape(FEATURES, 150, 24)
    part = features(*frames, 61, 70).reshape(FEATURES, 9, 24)
    assert np.array_equal(part, whole[:, 61:70])


def test_classes_know_the_grid_and_the_direction() -> None:
    flat = np.full((32, 32), 0.5, np.float32)
    on_grid = classify(flat) % 2 == 1
    assert on_grid[8].all()
    assert on_grid[:, 15].all()
    assert not on_grid[9:15, 9:15].any()
    stripes = np.tile(np.arange(32) % 2, (32, 1)).astype(np.float32)
    assert set(np.unique(classify(stripes))).isdisjoint(np.unique(classify(stripes.T)))


@pytest.mark.parametrize("change", [np.flipud, np.fliplr, np.transpose])
def test_a_mirrored_or_transposed_picture_is_restored_alike(change: Callable[[np.ndarray], np.ndarray]) -> None:
    s, filters = sample(7), fitted().at("hevc", 37)
    straight = change(correct(filters, s.before, s.current, s.after))
    # Time may run backwards too. Sums in another order can move a pixel on a class's limit to the other side.
    changed = correct(filters, change(s.after), change(s.current), change(s.before))
    assert np.mean(np.abs(changed - straight) > 1e-4) < 1e-3


def test_filters_blend_between_centres_and_hold_beyond_them() -> None:
    restorer = fitted((37, 42))
    low, high = restorer.at("hevc", 37), restorer.at("hevc", 42)
    assert np.abs(low - high).max() < 1e-5  # same noise at both
    np.testing.assert_allclose(restorer.at("hevc", 39), 0.6 * low + 0.4 * high, atol=1e-6)
    first = CENTRES["hevc"][0]
    assert np.array_equal(restorer.at("hevc", 0), restorer.at("hevc", first))


def test_saved_filters_restore_alike(tmp_path: Path) -> None:
    restorer, s = fitted(), sample(5)
    path = tmp_path / "filters.safetensors"
    restorer.save(path)
    again = ClosedForm.load(path)
    assert again.origin == "test"
    # Half precision in the file: far below an 8-bit step.
    np.testing.assert_allclose(apply(again, s), apply(restorer, s), atol=0.1 / 255)
    assert again.key == ClosedForm.load(path).key


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DiqpError, match="nothing to fit"):
        Fitter().solve("test")
    with pytest.raises(DiqpError, match="no closed-form filters at"):
        ClosedForm.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"garbage")
    with pytest.raises(DiqpError, match="not a file of closed-form filters"):
        ClosedForm.load(tmp_path / "bad.safetensors")
    with pytest.raises(DiqpError, match="av1"):
        fitted().at("av1", 100)


def test_lossless_frames_teach_nothing() -> None:
    s = sample(0)
    fitter = Fitter()
    fitter.add(Sample("hevc", 12, s.source, s.source, s.source, s.source))
    with pytest.raises(DiqpError, match="nothing to fit"):
        fitter.solve("test")
