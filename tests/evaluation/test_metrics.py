"""Metrics against values a reader can work out, against scikit-image, and the ways they must move."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vsdiqp.evaluation.metrics import (
    PSNR_CEILING,
    FrameScores,
    border_flicker,
    fluctuation,
    frame_scores_from_json,
    psnr,
    ssim,
    summarise,
)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(1).random((48, 64), np.float32)


def frame(y_psnr: float = 40.0, change: float | None = None, **other: float | None) -> FrameScores:
    values = {"c_psnr": 41.0, "rgb_psnr": 39.0, "y_ssim": 0.9, "rgb_ssim": 0.8} | other
    return FrameScores(y_psnr=y_psnr, change=change, **values)


def test_psnr_of_a_constant_error_is_its_logarithm(picture: np.ndarray) -> None:
    assert psnr(picture + np.float32(0.1), picture) == pytest.approx(20.0, abs=1e-3)
    assert psnr(picture + np.float32(1 / 255), picture) == pytest.approx(20 * math.log10(255), abs=1e-3)


def test_psnr_agrees_with_scikit_image(picture: np.ndarray) -> None:
    noisy = picture + np.random.default_rng(2).normal(0, 0.05, picture.shape).astype(np.float32)
    assert psnr(noisy, picture) == pytest.approx(peak_signal_noise_ratio(picture, noisy, data_range=1.0), abs=1e-4)


def test_psnr_of_luma_is_the_8_bit_number(picture: np.ndarray) -> None:
    clean = np.floor(picture * 255).astype(np.uint8)
    damaged = np.clip(clean.astype(int) + np.random.default_rng(3).integers(-3, 4, clean.shape), 0, 255).astype(
        np.uint8
    )
    ours = psnr(damaged.astype(np.float32) / 255, clean.astype(np.float32) / 255)
    assert ours == pytest.approx(peak_signal_noise_ratio(clean, damaged, data_range=255), abs=1e-4)


def test_equal_pictures_have_finite_psnr_and_full_ssim(picture: np.ndarray) -> None:
    assert psnr(picture, picture) == PSNR_CEILING
    assert ssim(picture, picture) == pytest.approx(1.0)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_more_noise_is_worse(measure: object, picture: np.ndarray) -> None:
    noise = np.random.default_rng(4).normal(0, 1, picture.shape).astype(np.float32)
    scores = [measure(picture + np.float32(s) * noise, picture) for s in (0.01, 0.02, 0.05, 0.1, 0.3)]  # type: ignore[operator]
    assert all(better > worse for better, worse in pairwise(scores))


def test_ssim_is_the_one_of_the_original_paper(picture: np.ndarray) -> None:
    noisy = np.clip(picture + np.random.default_rng(5).normal(0, 0.1, picture.shape), 0, 1).astype(np.float32)
    # On 8-bit scale with its constants: the measure must not depend on how samples are scaled.
    expected = structural_similarity(
        picture * 255, noisy * 255, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(noisy, picture) == pytest.approx(expected, abs=1e-4)


def test_fluctuation_of_a_zigzag() -> None:
    sd, pvd = fluctuation([30, 32, 30, 32, 30, 32, 30])
    assert sd == pytest.approx(np.std([30, 32, 30, 32, 30, 32, 30]))
    assert pvd == pytest.approx(2.0)


def test_peaks_are_measured_to_their_nearest_valleys() -> None:
    # The peak 35 has the valleys 31 and 29 beside it; the peak 33 has only 29 before it (the last frame is no valley).
    assert fluctuation([32, 31, 35, 29, 33, 32])[1] == pytest.approx(((35 - 30) + (33 - 29)) / 2)


@given(st.lists(st.floats(20, 60), min_size=1, max_size=30), st.floats(-5, 5))
def test_fluctuation_ignores_the_level(values: list[float], shift: float) -> None:
    sd, pvd = fluctuation(values)
    assert sd >= 0
    assert pvd >= 0
    # Values on a grid, so that the shift cannot merge neighbours into ties.
    grid = [round(v) for v in values]
    assert fluctuation([v + round(shift) for v in grid]) == pytest.approx(fluctuation(grid))


@pytest.mark.parametrize("values", [[], [30.0], [30.0, 31.0], [30.0, 31.0, 32.0, 33.0]])
def test_curves_without_peak_and_valley_have_no_pvd(values: list[float]) -> None:
    assert fluctuation(values)[1] == 0.0


def test_border_flicker_separates_borders_from_the_rest() -> None:
    # Frames 3, 6, 9 begin a group; frame 0 has no predecessor.
    assert border_flicker([None, 1, 1, 5, 1, 1, 5, 1, 1, 5, 1, 1]) == (5.0, 1.0)
    assert border_flicker([None]) is None


def test_the_ends_of_a_clip_are_no_flicker() -> None:
    """Calm first and last frames, which lie within groups, must not make the borders look rough."""
    assert border_flicker([None, 1, 1, 2, 5, 5, 5, 5, 5, 2, 1, 1]) == (5.0, 5.0)
    assert border_flicker([None, 1, 1, 2, 5, 5, 2, 1, 1]) is None


def test_a_clip_is_the_mean_of_its_frames() -> None:
    scores = summarise([frame(40.0, None, y_ssim=0.9), frame(42.0, 0.5, y_ssim=None), frame(41.0, 0.7, y_ssim=0.8)])
    assert scores.y_psnr == pytest.approx(41.0)
    assert scores.y_ssim == pytest.approx(0.85)
    assert scores.vmaf is scores.across is scores.within is None
    changes = [None, 0.9, 0.9, 0.9, 0.5, 0.7, 0.8, 0.9, 0.9, 0.9]
    scores = summarise([frame(40.0, change, y_ssim=0.9) for change in changes])
    assert scores.within == pytest.approx(0.6) and scores.across == pytest.approx(0.8)


def test_frames_survive_json() -> None:
    original = frame(40.123456, 0.25, y_ssim=None)
    assert frame_scores_from_json(original.to_json()) == original
