"""Tables: the numbers in them are the numbers measured."""

import json
from pathlib import Path

import pytest

from vsdiqp.evaluation import report
from vsdiqp.evaluation.evaluate import Point, Result, Settings
from vsdiqp.evaluation.metrics import FrameScores, summarise
from vsdiqp.labels import shown


def result(clip: str, codec: str, qp: float, method: str, y: float, length: int = 6) -> Result:
    frames = tuple(
        FrameScores(y + n % 2, c_psnr=40.0, rgb_psnr=y - 1, y_ssim=0.9, rgb_ssim=0.85, change=0.1 if n else None)
        for n in range(length)
    )
    return Result(Point(clip, codec, qp), method, 1000 - qp, summarise(frames), frames)


@pytest.fixture
def results() -> list[Result]:
    gains = {("a", "net"): 0.5, ("b", "net"): 0.1, ("a", "input"): 0.0, ("b", "input"): 0.0}
    points = [("hevc", 32.0), ("hevc", 37.0), ("av1", 204.0)]
    return [
        result(clip, codec, qp, method, 40 - qp / 100 + gain)
        for (clip, method), gain in gains.items()
        for codec, qp in points
    ]


def test_gain_is_the_mean_over_clips(results: list[Result]) -> None:
    table = report.Table(results)
    assert table.gain("net", "hevc", 37) == pytest.approx(0.3)
    assert table.restorers == ["net"]
    assert table.points == [("hevc", 32.0), ("hevc", 37.0), ("av1", 204.0)]


def test_markdown_shows_mean_and_worst_clip(results: list[Result]) -> None:
    text = report.markdown(report.Table(results))
    assert "| net | +0.300 | +0.300 | +0.300 |" in text
    assert "| a | +0.500 | +0.500 | +0.500 |" in text
    assert "+0.100" in text
    assert "VMAF" not in text  # not measured


def test_clips_too_short_to_compare_count_for_nothing() -> None:
    def text(**frames: int) -> str:
        both = [result(clip, "hevc", 32, m, 40, n) for clip, n in frames.items() for m in ("input", "net")]
        return report.markdown(report.Table(both))

    assert "| 0.100 / 0.100 |" in text(long=12, short=6)
    assert "| - / - |" in text(short=6)


def test_every_table_is_rectangular(results: list[Result]) -> None:
    blocks = [b for b in report.markdown(report.Table(results)).split("\n\n") if b.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_written_files_hold_everything(results: list[Result], tmp_path: Path) -> None:
    paths = report.write(results, Settings(), tmp_path)
    assert all(path.stat().st_size > 0 for path in paths)
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["y_psnr_gain"]["net"]["hevc"]["37"] == pytest.approx(0.3)
    assert len(data["results"]) == len(results)
    assert {path.suffix for path in paths} == {".json", ".md", ".png"}


def test_names_of_any_kind_are_written(tmp_path: Path) -> None:
    odd = ["$a_{$", shown("caf\udce9 é")]
    report.write([result(clip, "hevc", 32, m, 40) for clip in odd for m in ("input", "n$x^$")], Settings(), tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| $a_{$ |" in text and r"| caf\udce9 é |" in text
