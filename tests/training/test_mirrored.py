"""What a network's answers to mirrored pictures say: one that answers by chance gains from their mean."""

import dataclasses
from pathlib import Path

import pytest
import torch

from vsdiqp.cli import main
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, save_checkpoint
from vsdiqp.training.dataset import PoolDataset
from vsdiqp.training.mirrored import Views, compare_views, table
from vsdiqp.training.settings import load_settings
from vsdiqp.training.validation import restored_streams

LITE = load_settings("lite", {"pool": "none"}).network
TINY = dataclasses.replace(LITE, embed_dim=8, widths=(8, 8, 16), depths=(0, 0, 1, 0, 0), heads=(1, 1, 2, 1, 1))
CPU = torch.device("cpu")


def views(network: DiQP, pool: Path) -> list[Views]:
    data = PoolDataset(pool, qp="nominal", neighbours=TINY.neighbours)
    streams = restored_streams(network, data, CPU, "fp32", items=2)
    return list(compare_views(streams, network, CPU, "fp32").values())


def answering(weight: float, bias: float) -> DiQP:
    """A network whose last layer's weights are scaled and that adds ``bias`` to all it answers."""
    torch.manual_seed(3)
    network = DiQP(TINY)
    with torch.no_grad():
        network.head.project.weight.mul_(weight)  # type: ignore[operator,union-attr]
        network.head.project.bias.fill_(bias)  # type: ignore[operator,union-attr]
    return network


def test_a_network_that_sees_no_difference_gains_nothing_by_looking_again(small_pool: Path) -> None:
    for seen in views(answering(0.0, 0.5), small_pool):
        assert seen.two == pytest.approx(seen.one, abs=1e-4) and seen.four == pytest.approx(seen.one, abs=1e-4)
        assert max(seen.apart) < 1e-6


def test_the_mean_of_answers_given_by_chance_does_less_harm(small_pool: Path) -> None:
    """An untrained network's answers are errors, different ones to every view."""
    for seen in views(answering(30.0, 0.0), small_pool):
        assert all(one < two < four for one, two, four in zip(seen.one, seen.two, seen.four, strict=True))
        assert min(seen.apart) > 0.1


def test_a_pool_without_damage_is_refused(small_pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsdiqp.training.validation.UNHARMED", 1.0)
    with pytest.raises(DiqpError, match="no damaged frames"):
        views(answering(1.0, 0.0), small_pool)


def test_the_command_writes_a_table(small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(DiQP(TINY), tmp_path / "a.safetensors")
    arguments = ["study", "mirrored", str(tmp_path / "a.safetensors"), "--validation", str(small_pool)]
    assert main([*arguments, "--items", "1", "--out", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "mirrored.md"
    assert capsys.readouterr().out.split() == [str(path)]
    assert path.read_text().startswith("| codec | QP | streams | gain, dB |")


def test_the_table_holds_means() -> None:
    text = table({("hevc", 37.0): Views([0.2, 0.4], [0.3, 0.5], [0.4, 0.6], [0.1, 0.2])})
    assert text.splitlines()[-1] == "| hevc | 37 | 2 | +0.300 | +0.400 | +0.500 | 0.150 |"
