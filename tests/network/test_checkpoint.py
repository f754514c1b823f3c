"""Checkpoints: what is written is read back, and nothing else is taken for one or executed."""

import dataclasses
import json
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.network import vectors
from tests.network.small import RELEASED, SMALL_LITE, network, picture, run
from vsdiqp.errors import DiqpError
from vsdiqp.network import checkpoint
from vsdiqp.network.checkpoint import (
    METADATA_KEY,
    load_checkpoint,
    model_hash,
    read_config,
    read_first_pass,
    save_checkpoint,
    shipped,
)


@pytest.fixture
def lite(tmp_path: Path) -> Path:
    path = tmp_path / "lite.safetensors"
    save_checkpoint(network(SMALL_LITE), path, {"training": {"step": 7}})
    return path


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[METADATA_KEY])


def rewrite(path: Path, about: object) -> Path:
    """The same tensors with another description."""
    text = about if isinstance(about, str) else json.dumps(about)
    save_file(load_file(path), path, {METADATA_KEY: text})
    return path


@pytest.mark.parametrize("config", [SMALL_LITE, RELEASED])
def test_round_trip(config: Any, tmp_path: Path) -> None:
    net, path = network(config), tmp_path / "a.safetensors"
    save_checkpoint(net, path)
    again = load_checkpoint(path)
    assert again.config == read_config(path) == config
    assert not again.training
    tile = picture(config.multiple, config.multiple)
    assert torch.equal(run(again, tile), run(net, tile))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_metadata_is_kept_beside_the_description(lite: Path) -> None:
    about = header(lite)
    assert about["training"] == {"step": 7}
    assert about["config"]["widths"] == [8, 8, 16] and about["config"]["qp_range"]["av1"] == [40, 255]


def test_a_first_pass_is_described_and_counts_as_part_of_the_model(lite: Path, tmp_path: Path) -> None:
    two = dataclasses.replace(SMALL_LITE, first_pass=str(lite))
    save_checkpoint(network(two), path := tmp_path / "two.safetensors")
    assert read_config(path) == two
    assert "first_pass" not in header(lite)["config"], "older versions read what has none"
    before = model_hash(path)
    assert before != model_hash(lite)
    rewrite(lite, {**header(lite), "training": {"step": 8}})
    assert model_hash(path) != before


def test_a_first_pass_has_none_itself(lite: Path, tmp_path: Path) -> None:
    two, three = tmp_path / "two.safetensors", tmp_path / "three.safetensors"
    save_checkpoint(network(dataclasses.replace(SMALL_LITE, first_pass=str(lite))), two)
    save_checkpoint(network(dataclasses.replace(SMALL_LITE, first_pass=str(two))), three)
    assert read_first_pass(str(lite)) == SMALL_LITE
    for refused in (read_first_pass, model_hash):
        with pytest.raises(DiqpError, match="cannot be a first pass: it has one itself"):
            refused(str(two) if refused is read_first_pass else three)


def test_a_prepared_or_trained_network_saves_the_same(tmp_path: Path) -> None:
    net = network(SMALL_LITE)
    for name, state in (("prepared", net.prepare()), ("training", net.train())):
        save_checkpoint(state, tmp_path / f"{name}.safetensors")  # type: ignore[arg-type]
    first, second = (load_file(tmp_path / f"{n}.safetensors") for n in ("prepared", "training"))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# -- names -------------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_answered_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    with pytest.raises(DiqpError, match=r"'lite'.*none is installed"):
        load_checkpoint("lite")
    for name in ("swift", "grand"):
        save_checkpoint(network(SMALL_LITE), tmp_path / f"{name}.safetensors")
    assert shipped() == ["grand", "swift"]
    with pytest.raises(DiqpError, match=r"no model 'lite'.*grand, swift.*\.safetensors.*\.pt"):
        load_checkpoint("lite")
    assert load_checkpoint("swift").config.name == "lite"


def test_a_folder_of_a_models_name_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    save_checkpoint(network(SMALL_LITE), tmp_path / "swift.safetensors")
    (tmp_path / "work" / "swift").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert read_config("swift").name == "lite"
    (tmp_path / "work" / "swift").rmdir()
    (tmp_path / "work" / "swift").write_text("nor is a file")
    assert read_config("swift").name == "lite"


# -- files that are something else -------------------------------------------------------------------------------------


def refused(path: Path, message: str) -> None:
    for read in (load_checkpoint, read_config):
        with pytest.raises(DiqpError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)


def test_safetensors_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata)
        refused(path, "of another program.*vsdiqp train.*vsdiqp convert")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_damaged_safetensors(lite: Path, keep: int) -> None:
    whole = lite.read_bytes()
    lite.write_bytes(whole[:keep])
    refused(lite, "damaged.*again")


@pytest.mark.parametrize("about", ["{", "[]", "{}", {"format": "vsdiqp-2"}, {"format": "vsdiqp-1"}])
def test_descriptions_that_cannot_be_read(lite: Path, about: object) -> None:
    refused(rewrite(lite, about), "damaged|reads 'vsdiqp-1': update")


def test_values_of_the_wrong_kind(lite: Path) -> None:
    about = header(lite)
    about["config"]["depths"] = 5
    refused(rewrite(lite, about), "damaged")


def test_newer_checkpoints_say_so(lite: Path) -> None:
    about = header(lite)
    about["config"]["gates"] = 3
    about["config"]["wings"] = 2
    refused(rewrite(lite, about), "gates, wings.*update vsdiqp")


def test_tensors_that_do_not_fit_the_description(lite: Path) -> None:
    about, tensors = header(lite), load_file(lite)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, lite, {METADATA_KEY: json.dumps(about)})
    with pytest.raises(DiqpError, match=f"does not fit.*(?s:.)*{name}"):
        load_checkpoint(lite)


# -- released files ----------------------------------------------------------------------------------------------------


def released_state() -> dict[str, Any]:
    return {key: vectors.weight(key, shape) for key, shape in vectors.shapes(vectors.S).items()}


def test_codec_is_guessed_from_the_name(tmp_path: Path) -> None:
    for name, codecs in (("checkpoint_AV1.pt", ("av1",)), ("checkpoint_HEVC.pt", ("hevc",)), ("x.pt", ("hevc", "av1"))):
        torch.save(released_state(), tmp_path / name)
        config = read_config(tmp_path / name)
        assert config.codecs == codecs and set(config.qp_range) == set(codecs)
        assert config.depths == vectors.S.depths and config.uses_ahead


WRAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "in parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "with an optimiser": lambda state: {"epoch": 3, "optimizer": {"state": {}}, "state_dict": state},
    "in parallel, in a dictionary": lambda state: {"model": {f"module.{name}": v for name, v in state.items()}},
    "beside numbers": lambda state: {**state, "epoch": 3, "best": 1.0},
    "beside buffers": lambda state: {**state, "encoderlayer_0.blocks.0.attn_mask": torch.zeros(4, 64, 64)},
    "in half precision": lambda state: {name: value.half() for name, value in state.items()},
}


@pytest.mark.parametrize("wrapping", list(WRAPPINGS))
def test_released_weights_as_training_programs_save_them(wrapping: str, tmp_path: Path) -> None:
    torch.save(released_state(), tmp_path / "a.pt")
    torch.save(WRAPPINGS[wrapping](released_state()), tmp_path / "b.pt")
    plain, wrapped = load_checkpoint(tmp_path / "a.pt"), load_checkpoint(tmp_path / "b.pt")
    assert wrapped.config == dataclasses.replace(plain.config, name="b.pt") == read_config(tmp_path / "b.pt")
    for one, other in zip(plain.state_dict().values(), wrapped.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-7)


def test_released_weights_as_safetensors(tmp_path: Path) -> None:
    save_file(released_state(), tmp_path / "checkpoint_AV1.safetensors")
    network = load_checkpoint(tmp_path / "checkpoint_AV1.safetensors")
    assert network.config == read_config(tmp_path / "checkpoint_AV1.safetensors")
    assert network.config.codecs == ("av1",) and checkpoint.read_metadata(tmp_path / "checkpoint_AV1.safetensors") == {}


def test_a_feed_forward_of_another_width(tmp_path: Path) -> None:
    config = dataclasses.replace(vectors.S, mlp_ratio=2)
    torch.save({key: vectors.weight(key, shape) for key, shape in vectors.shapes(config).items()}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").config.mlp_ratio == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    state = released_state()
    state["lost.proj.0.bias"][0] = value
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(DiqpError, match=r"does not fit.*lost.project.bias holds numbers that are not finite"):
        load_checkpoint(tmp_path / "a.pt")
    state["lost.proj.0.bias"] = torch.zeros_like(state["lost.proj.0.bias"], dtype=torch.complex64)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(DiqpError, match=r"does not fit.*lost.project.bias holds torch.complex64"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("missing", ["lost.stepEmbedding.weight", "conv.blocks.0.attn.relative_position_bias_table"])
def test_released_files_with_missing_names(tmp_path: Path, missing: str) -> None:
    state = released_state()
    del state[missing]
    torch.save(state, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", f"no complete DiQP checkpoint: {missing}")


def test_released_files_with_foreign_names(tmp_path: Path) -> None:
    torch.save({**released_state(), "discriminator.weight": torch.zeros(2)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "discriminator.weight")


def test_released_files_lacking_a_plain_weight(tmp_path: Path) -> None:
    state = released_state()
    del state["output_proj.proj.0.bias"]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(DiqpError, match=r"does not fit(?s:.)*head.project.bias"):
        load_checkpoint(tmp_path / "a.pt")


def test_state_dicts_of_other_networks(tmp_path: Path) -> None:
    for content in ({"conv.weight": torch.zeros(3)}, [1, 2], torch.zeros(4)):
        torch.save(content, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", "no DiQP checkpoint.*accepted")


def test_released_names_with_other_contents(tmp_path: Path) -> None:
    for value in (torch.tensor(1.0), "text"):
        torch.save({**released_state(), "input_proj.proj.0.weight": value}, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", "no DiQP checkpoint")


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"PK\x03\x04" + b"\0" * 60])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    refused(tmp_path / "a.pt", "no checkpoint that can be read safely")


class Trap:
    """Leaves a file behind when it is unpickled by a loader that executes what it reads."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    trap = {"input_proj.proj.0.weight": torch.zeros(3), "x": Trap(mark)}
    plain, zipped = tmp_path / "plain.pt", tmp_path / "zipped.pt"
    plain.write_bytes(pickle.dumps(trap["x"], protocol=2))
    torch.save(trap, zipped)
    with zipfile.ZipFile(zipped) as file:
        assert any(b"touch" in file.read(name) for name in file.namelist())
    for path in (plain, zipped):
        refused(path, "no checkpoint that can be read safely")
    assert not mark.exists()
    pickle.loads(plain.read_bytes())
    assert mark.exists(), "the trap does not work"


def test_saving_replaces_a_file_whole_or_not_at_all(lite: Path) -> None:
    """A disk that is full, played by a limit on the size of files: what was there stays."""
    before = lite.read_bytes()
    other = network(dataclasses.replace(SMALL_LITE, name="other"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError):
            save_checkpoint(other, lite)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert lite.read_bytes() == before
    save_checkpoint(other, lite)
    assert read_config(lite).name == "other"
