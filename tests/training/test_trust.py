"""Trust: what is applied of a prediction gains most without harm, and the checkpoint says so."""

import dataclasses
from pathlib import Path

import pytest
import torch

from vsdiqp.cli import main
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, DiQPConfig, load_checkpoint, read_metadata, save_checkpoint
from vsdiqp.training.dataset import PoolDataset
from vsdiqp.training.settings import load_settings
from vsdiqp.training.trust import CHROMA, SHARES, Measured, best, measure, table, trusted, unmeasured
from vsdiqp.training.validation import restored_streams

LITE = load_settings("lite", {"pool": "none"}).network
TINY = dataclasses.replace(LITE, embed_dim=8, widths=(8, 8, 16), depths=(0, 0, 1, 0, 0), heads=(1, 1, 2, 1, 1))
CPU = torch.device("cpu")


def gains(peak: float, height: float = 0.5) -> list[float]:
    """dB at every share for a prediction whose best share is ``peak``: a parabola through 0."""
    return [height * (1 - ((share - peak) / peak) ** 2) for share in SHARES]


def test_the_share_that_gains_most_is_taken() -> None:
    assert SHARES[best([gains(0.8), gains(1.0), gains(0.9)])] == pytest.approx(0.9)


def test_harm_to_one_weighs_more_than_gains_of_others() -> None:
    harmed = [-0.2 * share for share in SHARES]
    assert SHARES[best([gains(1.0), gains(1.0), harmed])] <= 0.4
    assert SHARES[best([harmed, harmed])] == 0.0


def test_trust_and_chroma_are_what_was_measured() -> None:
    network = DiQP(TINY)
    found = Measured()
    found.luma["hevc", 22.0] = [gains(0.5), gains(0.5)]
    found.luma["hevc", 37.0] = [gains(1.1)]
    found.luma["av1", 153.0] = [[-share for share in SHARES]]
    for at, peak in zip(found.luma, (0.4, 0.7, 0.4), strict=True):
        found.chroma[at] = [[[0.1 * c * (2 * peak - c) for c in CHROMA] for _ in SHARES]] * 2
    result = trusted(network, found, 256)
    assert result.confidence(22, "hevc") == pytest.approx(0.5)
    assert result.confidence(45, "hevc") == pytest.approx(1.1)
    assert result.confidence(153, "av1") == 0.0
    assert result.chroma_confidence(20, "hevc") == pytest.approx(0.4)
    assert result.chroma_confidence(29.5, "hevc") == pytest.approx(0.55)
    assert "| hevc | 22 | 2 | 0.50 | +0.500 |" in table(found, result)


def narrow(*qps: float) -> Measured:
    """Luma's best share 1.0 and chroma's 0.5 at QPs of HEVC."""
    found = Measured()
    for qp in qps:
        found.luma["hevc", qp] = [gains(1.0)]
        found.chroma["hevc", qp] = [[[c * (1 - c) for c in CHROMA] for _ in SHARES]] * 2
    return found


def test_points_outside_what_was_measured_stay() -> None:
    own = {"hevc": ((12.0, 0.3), (17.0, 0.65), (37.0, 0.9), (48.0, 0.8)), "av1": ((102.0, 0.4),)}
    colour = {"hevc": ((12.0, 0.2), (22.0, 0.3)), "av1": ((102.0, 0.1),)}
    network = DiQP(dataclasses.replace(TINY, trust=own, chroma_trust=colour))
    config = trusted(network, narrow(32.0, 42.0), 256).config
    assert config.trust["hevc"] == ((12.0, 0.3), (17.0, 0.65), (32.0, 1.0), (42.0, 1.0), (48.0, 0.8))
    assert config.chroma_trust["hevc"] == ((12.0, 0.2), (22.0, 0.3), (32.0, 0.5), (42.0, 0.5))
    assert (config.trust["av1"], config.chroma_trust["av1"]) == (own["av1"], colour["av1"])


def test_low_qps_that_nothing_is_known_of_are_told() -> None:
    low = TINY.qp_range["hevc"][0]
    (line,) = unmeasured(DiQP(TINY), narrow(32.0, 42.0))
    assert line.startswith(f"hevc: nothing is known of QPs {low} to 32")
    assert not unmeasured(DiQP(TINY), narrow(float(low), 42.0))
    known = dataclasses.replace(TINY, trust={"hevc": ((12.0, 0.3),)})
    assert not unmeasured(DiQP(known), narrow(32.0, 42.0))


def test_a_network_that_does_harm_is_not_trusted(small_pool: Path) -> None:
    """One whose every prediction is far too bright and too blue."""
    network = DiQP(TINY)
    with torch.no_grad():
        network.head.project.weight.zero_()  # type: ignore[operator,union-attr]
        network.head.project.bias.fill_(3.0)  # type: ignore[operator,union-attr]
    data = PoolDataset(small_pool, qp="nominal", neighbours=TINY.neighbours)
    found = measure(restored_streams(network, data, CPU, "fp32", items=2), TINY)
    assert set(found.luma) == set(found.chroma) and len(found.luma) > 1
    for rows in found.luma.values():
        assert all(row[0] == pytest.approx(0, abs=1e-3) and row[-1] < -3 for row in rows)
    result = trusted(network, found, 256)
    assert all(share <= 0.1 for points in result.config.trust.values() for _, share in points)


def test_the_command_writes_a_checkpoint(small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(DiQP(TINY), tmp_path / "raw.safetensors", {"training": {"step": 7}})
    out = tmp_path / "ready.safetensors"
    arguments = ["study", "trust", str(tmp_path / "raw.safetensors"), str(out), "--validation", str(small_pool)]
    assert main([*arguments, "--items", "1", "--tile", "512"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == [str(out), str(tmp_path / "ready.md")]
    assert "warning: hevc: nothing is known of QPs" in captured.err
    assert "| share |" in (tmp_path / "ready.md").read_text()
    config: DiQPConfig = load_checkpoint(out).config
    assert config.trust and config.tile == 512
    assert read_metadata(out) == {"training": {"step": 7}}
    arguments[3] = str(tmp_path / "ready.pt")
    assert main(arguments) == 1
    assert "ends in .safetensors" in capsys.readouterr().err


def test_a_pool_without_damage_is_refused() -> None:
    with pytest.raises(DiqpError, match="no damaged frames"):
        measure([], TINY)
