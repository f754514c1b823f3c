"""Engines are kept whole or not at all, and belong to exactly one key. A stand-in takes TensorRT's place."""

import json
import logging
import multiprocessing
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from vsdiqp.backends.engine_cache import EngineCache, EngineKey
from vsdiqp.cli import main

KEY = EngineKey(
    model="lite",
    weights="a" * 64,
    config="b" * 64,
    tile=(256, 256),
    batch=4,
    precision="fp16",
    gpu="NVIDIA Test",
    capability="9.0",
    driver="13000",
    tensorrt="11.0",
    torch_tensorrt="2.13.0",
    torch="2.13.0",
    vsdiqp="0.1.0",
)


class Builder:
    def __init__(self, engine: bytes = b"\x00engine\n" * 100):
        self.engine, self.built = engine, 0

    def __call__(self) -> bytes:
        self.built += 1
        return self.engine


def test_an_engine_is_built_once_and_comes_back_as_it_was(tmp_path: Path):
    build = Builder()
    assert EngineCache(tmp_path).get(KEY, build) == build.engine
    assert EngineCache(tmp_path).get(KEY, build) == build.engine
    assert build.built == 1


@pytest.mark.parametrize("name", [field.name for field in fields(EngineKey)])
def test_every_part_of_the_key_matters(tmp_path: Path, name: str):
    old = getattr(KEY, name)
    other = replace(KEY, **{name: (128, 128) if name == "tile" else 8 if name == "batch" else f"{old}x"})
    cache, build = EngineCache(tmp_path), Builder()
    cache.get(KEY, build)
    cache.get(other, build)
    assert build.built == 2


@pytest.mark.parametrize("damage", ["cut short", "one byte changed", "header gone", "empty"])
def test_a_damaged_engine_is_built_again_and_said_once(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture):
    cache, build = EngineCache(tmp_path), Builder()
    cache.get(KEY, build)
    path = cache.path(KEY)
    whole = path.read_bytes()
    broken = {
        "cut short": whole[:-10],
        "one byte changed": whole[:-1] + bytes([whole[-1] ^ 1]),
        "header gone": whole.partition(b"\n")[2],
        "empty": b"",
    }
    path.write_bytes(broken[damage])
    caplog.clear()
    with caplog.at_level(logging.INFO, "vsdiqp"):
        assert cache.get(KEY, build) == build.engine
    assert build.built == 2
    assert path.read_bytes() == whole
    lines = [record.message for record in caplog.records]
    assert len(lines) == 1 and "damaged" in lines[0] and "building" in lines[0]


def test_an_engine_of_older_versions_is_replaced_and_the_line_says_what_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cache, build = EngineCache(tmp_path), Builder()
    cache.get(KEY, build)
    with caplog.at_level(logging.INFO, "vsdiqp"):
        cache.get(replace(KEY, driver="13010"), build)
    assert "stale (driver 13000 -> 13010)" in caplog.records[-1].message
    assert [entry.key for entry in cache.entries()] == [replace(KEY, driver="13010")]


def test_engines_of_other_gpus_and_tiles_stay(tmp_path: Path):
    cache, build = EngineCache(tmp_path), Builder()
    for key in (KEY, replace(KEY, gpu="NVIDIA Other"), replace(KEY, tile=(512, 256)), replace(KEY, batch=1)):
        cache.get(key, build)
    assert len(cache.entries()) == 4
    assert cache.has(KEY) and not cache.has(replace(KEY, torch="2.14"))


def test_a_build_that_fails_leaves_nothing(tmp_path: Path):
    def fail() -> bytes:
        raise RuntimeError("no")

    cache = EngineCache(tmp_path)
    with pytest.raises(RuntimeError):
        cache.get(KEY, fail)
    assert cache.entries() == [] and not list(tmp_path.glob("*.partial"))
    assert cache.get(KEY, Builder()) == Builder().engine


def _build_in_process(folder: str, log: str) -> None:
    def build() -> bytes:
        with open(log, "a") as file:
            file.write("start ")
        time.sleep(0.3)
        with open(log, "a") as file:
            file.write("end ")
        return b"engine"

    assert EngineCache(Path(folder)).get(KEY, build) == b"engine"


def test_processes_build_an_engine_once(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    arguments = (str(tmp_path / "cache"), str(log))
    processes = [context.Process(target=_build_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text().split() == ["start", "end"]


def test_the_command_lists_and_clears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = EngineCache()
    assert cache.folder.is_relative_to(tmp_path)
    cache.get(KEY, Builder())
    cache.get(replace(KEY, tile=(128, 128)), Builder())
    cache.path(KEY).write_bytes(b"junk")
    assert main(["engine", "list"]) == 0
    listed = capsys.readouterr().out
    assert "lite 128x128 batch 4 fp16, NVIDIA Test" in listed and "damaged" in listed and "2 engine(s)" in listed
    assert main(["engine", "clear"]) == 0
    assert "removed 2 engine(s)" in capsys.readouterr().out
    assert not [path for path in cache.folder.iterdir() if path.suffix == ".engine"]


def test_files_say_what_they_are(tmp_path: Path):
    cache = EngineCache(tmp_path)
    cache.get(KEY, Builder())
    header = json.loads(cache.path(KEY).read_bytes().partition(b"\n")[0])
    assert header["key"]["gpu"] == "NVIDIA Test"
    assert cache.path(KEY).name.startswith("lite-256x256-b4-fp16-NVIDIA_Test-")
