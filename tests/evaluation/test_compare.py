"""Where the picture of a comparison zooms in, and what it says."""

from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs
from clips import write_clip

from vsdiqp.evaluation.compare import Still, compare, draw, liveliest
from vsdiqp.evaluation.video import open_video


def still(level: float) -> Still:
    luma = np.full((64, 80), level, np.float32)
    return Still(np.stack([luma] * 3), luma)


def test_crops_lie_where_most_changed() -> None:
    change = np.zeros((60, 100), np.float32)
    change[40:50, 70:80] = 1
    change[5:10, 10:15] = 0.5
    first, second = liveliest(change, 12, 2)
    assert 38 <= first[0] <= 40
    assert 68 <= first[1] <= 70
    assert second[0] <= 5
    assert second[1] <= 10


def test_crops_are_disjoint_and_inside() -> None:
    places = liveliest(np.random.default_rng(0).random((50, 70)), 16, 4)
    assert len(places) == 4
    for i, (top, left) in enumerate(places):
        assert 0 <= top <= 50 - 16
        assert 0 <= left <= 70 - 16
        assert all(abs(top - t) >= 16 or abs(left - x) >= 16 for t, x in places[:i])


def test_small_pictures_give_fewer_crops() -> None:
    assert liveliest(np.ones((10, 10), np.float32), 96, 3) == [(0, 0)]


def test_metrics_come_with_a_source_only(tmp_path: Path) -> None:
    before, after, source = still(0.4), still(0.49), still(0.5)
    assert draw([before, after], tmp_path / "two.png") == []
    metrics = draw([before, after, source], tmp_path / "three.png", crop=16)
    assert metrics[0].y_psnr == pytest.approx(20, abs=1e-3)
    assert metrics[1].y_psnr == pytest.approx(40, abs=1e-2)
    assert (tmp_path / "two.png").stat().st_size > 0
    assert (tmp_path / "three.png").stat().st_size > 0


@pytest.mark.skipif(not hasattr(vs.core, "bs"), reason="needs vapoursynth-bestsource")
def test_all_files_are_read_by_the_sources_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files on the way from a filter often lose what the source says, and BT.601 would be guessed at this size."""
    tagged = write_clip(tmp_path / "source.mkv", 2, matrix=1, hue=True)
    untagged = write_clip(tmp_path / "restored.mkv", 2, hue=True)
    assert compare([untagged, untagged, tagged], tmp_path / "a.png") == compare([tagged] * 3, tmp_path / "b.png")
    first, second = (Still.of(open_video(path), 0) for path in (tagged, untagged))
    assert np.abs(first.rgb - second.rgb).max() > 0.01, "each by itself they would be"
    seen: list[Still] = []
    monkeypatch.setattr("vsdiqp.evaluation.compare.draw", lambda stills, *_: seen.extend(stills) or [])
    compare([tagged, untagged], tmp_path / "c.png")  # without a source, the first file's
    assert np.array_equal(seen[1].rgb, first.rgb)
