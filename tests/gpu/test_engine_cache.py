"""Engines are kept whole or not at all, and belong to exactly one key. A stand-in takes TensorRT's place."""

import errno
import json
import logging
import multiprocessing
import os
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from vsdiqp.backends.engine_cache import EngineCache, EngineKey
from vsdiqp.cli import main
from vsdiqp.errors import BackendError

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


def test_that_nothing_could_be_built_is_found_out_once(tmp_path: Path):
    """It takes minutes, and whoever opens a script would wait for them each time."""
    tried = []

    def refuse() -> bytes:
        tried.append(1)
        raise BackendError("no such converter")

    cache = EngineCache(tmp_path)
    for _ in range(2):
        with pytest.raises(BackendError, match="no such converter"):
            EngineCache(tmp_path).get(KEY, refuse)
    assert len(tried) == 1 and not cache.has(KEY)
    assert [entry.refused for entry in cache.entries()] == ["no such converter"]
    with pytest.raises(BackendError, match="vsdiqp engine clear"):
        cache.get(KEY, refuse)
    assert cache.get(replace(KEY, driver="13010"), Builder()) == Builder().engine, "another driver may do better"
    with pytest.raises(BackendError):
        cache.get(KEY, refuse)
    assert cache.get(KEY, Builder(), again=True) == cache.get(KEY, refuse) == Builder().engine


def test_that_memory_ran_out_is_not_kept(tmp_path: Path):
    def fail() -> bytes:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        EngineCache(tmp_path).get(KEY, fail)
    assert EngineCache(tmp_path).entries() == []


def test_networks_of_one_name_do_not_cost_each_other_their_engines(tmp_path: Path):
    cache, build = EngineCache(tmp_path), Builder()
    for key in (KEY, replace(KEY, weights="c" * 64)) * 2:
        cache.get(key, build)
    assert build.built == 2


def test_a_folder_that_can_t_be_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    build = Builder()
    with caplog.at_level(logging.WARNING, "vsdiqp"):
        assert EngineCache(tmp_path / "file" / "engines").get(KEY, build) == build.engine
    assert len(caplog.records) == 1 and "can't be kept" in caplog.text


def test_a_full_disk_costs_the_next_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache, old, build = EngineCache(tmp_path), replace(KEY, driver="12000"), Builder()
    cache.get(old, build)
    with monkeypatch.context() as patch:
        patch.setattr("vsdiqp.backends.engine_cache.os.fsync", full)
        assert cache.get(KEY, build) == build.engine
    assert "No space left" in caplog.text
    assert cache.has(old) and not cache.has(KEY) and not list(tmp_path.glob("*.partial"))


def test_an_engine_that_is_there_needs_no_folder_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = EngineCache(tmp_path)
    cache.get(KEY, Builder())

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("vsdiqp.backends.engine_cache._lock", read_only)
    build = Builder()
    assert cache.get(KEY, build) == Builder().engine and build.built == 0


def test_clearing_leaves_what_is_being_built_alone(tmp_path: Path):
    cache = EngineCache(tmp_path)

    def build() -> bytes:
        (tmp_path / "new.partial").write_bytes(b"half of one that another process is at")
        (tmp_path / "old.partial").write_bytes(b"half of one whose process was killed")
        os.utime(tmp_path / "old.partial", (0, 0))
        cache.clear()
        return b"engine"

    assert cache.get(KEY, build) == b"engine" and cache.has(KEY)
    assert [path.name for path in tmp_path.glob("*.partial")] == ["new.partial"]
    assert list(tmp_path.glob("*.lock")), "the next builder waits for it still"


def _build_in_process(folder: str, log: str) -> None:
    def build() -> bytes:
        with open(log, "a") as file:
            file.write("start ")
        time.sleep(1.0)
        with open(log, "a") as file:
            file.write("end ")
        return b"engine"

    assert EngineCache(Path(folder)).get(KEY, build) == b"engine"


def test_processes_build_an_engine_once(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    arguments = (str(tmp_path / "cache"), str(log))
    processes = [context.Process(target=_build_in_process, args=arguments, daemon=True) for _ in range(3)]
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
