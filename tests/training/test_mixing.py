"""A network between two others."""

import dataclasses
from pathlib import Path

import pytest
import torch

from vsdiqp.cli import main
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, load_checkpoint, read_metadata, save_checkpoint
from vsdiqp.training.mixing import mix
from vsdiqp.training.settings import load_settings

LITE = load_settings("lite", {"pool": "none"}).network
TINY = dataclasses.replace(LITE, embed_dim=8, widths=(8, 8, 16), depths=(0, 0, 1, 0, 0), heads=(1, 1, 2, 1, 1))


def test_weights_lie_between_and_the_ends_are_the_networks() -> None:
    first, second = DiQP(dataclasses.replace(TINY, trust={"hevc": ((27.0, 0.5),)})), DiQP(TINY)
    for share in (0.0, 0.25, 1.0):
        mixed = mix(first, second, share)
        assert mixed.config == first.config
        triples = zip(mixed.parameters(), first.parameters(), second.parameters(), strict=True)
        assert all(torch.allclose(m, a + share * (b - a), atol=1e-7) for m, a, b in triples)
    same = zip(mixed.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(m, b) for m, b in same)


def test_other_shapes_and_shares_are_refused() -> None:
    first = DiQP(TINY)
    with pytest.raises(DiqpError, match="of one shape"):
        mix(first, DiQP(dataclasses.replace(TINY, neighbours=2)), 0.5)
    with pytest.raises(DiqpError, match=r"share is 1\.5: give 0 .* to 1"):
        mix(first, DiQP(TINY), 1.5)


def test_the_command_writes_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "out.safetensors")]
    for path, step in zip(paths[:2], (10, 20), strict=True):
        save_checkpoint(DiQP(TINY), path, {"training": {"step": step}})
    assert main(["study", "mix", *map(str, paths), "--share", "0.5"]) == 0
    assert capsys.readouterr().out.split() == [str(paths[2])]
    a, b, mixed = (load_checkpoint(path) for path in paths)
    weights = (network.stem.project.weight for network in (a, b, mixed))  # type: ignore[union-attr]
    first, second, middle = weights
    torch.testing.assert_close(middle, (first + second) / 2)  # type: ignore[operator]
    assert read_metadata(paths[2])["training"]["step"] == 20
    assert main(["study", "mix", *map(str, paths[:2]), str(tmp_path / "out.pt")]) == 1
