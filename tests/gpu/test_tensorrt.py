"""The TensorRT backend without TensorRT: what is exported, and engines that a stand-in builds and runs."""

import itertools
import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from networks import LITE_LIKE
from stand_in_device import HostDevice
from test_gpu_backend import RELEASED_LIKE, beside_run, beside_task, network, run, task

from vsdiqp import tiles
from vsdiqp.backends import cuda, tensorrt, unavailable
from vsdiqp.backends.cuda import GpuBackend
from vsdiqp.backends.engine_cache import EngineCache
from vsdiqp.errors import BackendError, DiqpError
from vsdiqp.network import DiQP, DiQPConfig

ROOT = Path(__file__).resolve().parents[2]
PROVEN = json.loads((ROOT / "tests/data/tensorrt_converters.json").read_text())
LITE, BASE = (
    DiQPConfig.from_dict(tomllib.loads((ROOT / f"vsdiqp/training/configs/{name}.toml").read_text())["network"])
    for name in ("lite", "base")
)
# As released, but for the number of blocks and channels: the same kinds of operations.
RELEASED = DiQPConfig(embed_dim=3, depths=(1, 2, 2, 1, 1, 1, 2, 1, 1), tile=256)


class Stand:
    """Builds and runs engines with torch.export in TensorRT's place."""

    PROGRAMS: ClassVar[dict[bytes, torch.export.ExportedProgram]] = {}
    """By engine, which is a number: torch takes its time to save and to load them."""

    def __init__(self) -> None:
        self.builds: list[int] = []
        self.loads = 0

    def versions(self) -> dict[str, str]:
        return {"tensorrt": "none", "torch_tensorrt": "none"}

    def build(self, program: torch.export.ExportedProgram, inputs: Sequence[torch.Tensor], batch: int) -> bytes:
        self.builds.append(batch)
        engine = str(len(self.PROGRAMS)).encode()
        self.PROGRAMS[engine] = program
        return engine

    def load(self, engine: bytes, names: Sequence[str], device: torch.device) -> Callable[..., torch.Tensor]:
        self.loads += 1
        program = self.PROGRAMS[engine]
        assert tuple(names) == tensorrt.input_names(program)
        return program.module()


def exported(config: DiQPConfig, side: int, batch: int = 2) -> torch.export.ExportedProgram:
    tiles = tensorrt.TileNetwork(DiQP(config).to_precision(torch.float16)).eval()
    return tensorrt.export(tiles, tensorrt.example_inputs(tiles, (side, side), batch, torch.device("cpu")), batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "side"),
    [("released", RELEASED, 128), ("lite", LITE, LITE.multiple * 2), ("base", BASE, BASE.multiple * 2)],
)
def test_everything_exported_has_a_converter(name: str, config: DiQPConfig, side: int):
    program = exported(config, side)
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    strange = operations - set(PROVEN["networks"][name]["exported"])
    assert not strange, (
        f"{sorted(strange)} were not looked up in torch-tensorrt {PROVEN['torch_tensorrt']}'s registry yet: "
        "run scripts/tensorrt_converters and commit its file if it finds converters"
    )


def test_tile_sides_are_fixed_and_the_batch_is_a_range():
    program = exported(RELEASED_LIKE, 32, batch=4)
    ranges = [dims for _, dims in tensorrt._ranges(program, [torch.empty(0)] * len(tensorrt.input_names(program)))]
    assert ranges[:3] == [{0: (1, 4)}, {1: (1, 4)}, {0: (1, 4)}], "tile, location, look-ahead tile"
    assert not any(ranges[3:]), "weight decay and guides come once a group"
    module, tiles = program.module(), tensorrt.TileNetwork(DiQP(RELEASED_LIKE).to_precision(torch.float16)).eval()
    for batch in (1, 3):
        inputs = tensorrt.example_inputs(tiles, (32, 32), batch, torch.device("cpu"))
        assert module(*inputs).shape == (batch, 3, 3, 32, 32)


def test_aligned_neighbours_are_an_input_with_the_batch():
    program = exported(LITE_LIKE, 32, batch=4)
    names = tensorrt.input_names(program)
    ranges = [dims for _, dims in tensorrt._ranges(program, [torch.empty(0)] * len(names))]
    assert ranges == [{0: (1, 4)}, {1: (1, 4)}, {0: (1, 4)}], "tile, location, beside"
    network = DiQP(LITE_LIKE).prepare()
    tiles, plain = tensorrt.TileNetwork(network).eval(), []
    inputs = [torch.rand_like(value) for value in tensorrt.example_inputs(tiles, (32, 32), 2, torch.device("cpu"))]
    tile, location, beside = inputs
    assert beside.shape == (2, 3, 6, 32, 32)
    with torch.no_grad():
        decay = torch.ones(1, 1, 1, 1, 1)
        plain = network.predict(tile, tile[:, :, :2], ((), ()), location, decay, beside)
        given = tiles.arguments(tile, tile[:, :, :2], ((), ()), location, decay, beside)
        torch.testing.assert_close(tiles(*given), plain)


@pytest.mark.parametrize(
    ("the_task", "the_run", "largest"),
    [(task(batch=3), run, 4), (beside_task(batch=2), beside_run, 2)],
    ids=["released", "neighbours"],
)
def test_an_engine_restores_what_the_network_restores(the_task, the_run, largest: int, tmp_path: Path):
    stand, cache = Stand(), EngineCache(tmp_path)

    def engine(copied, device, size):
        tile = (size.plan.columns.side, size.plan.rows.side)
        return tensorrt.engine_network(copied, device, tile, size.batch, "fp32", stand, cache)

    def plain(copied, device, size):
        return cuda.make_network(copied, "eager", torch.float32, device.torch)

    restored = []
    for make in (plain, engine, engine):
        one = the_run()
        GpuBackend(the_task, [HostDevice()], "fp32", "test", make, record=False).restore(one)
        restored.append(one.targets)
    assert stand.builds == [largest], "one engine for batches up to that, from the cache the second time"
    assert stand.loads == 2
    for a, b, c in zip(*restored, strict=True):
        for x, y, z in zip(a, b, c, strict=True):
            assert np.abs(x.astype(int) - y.astype(int)).max() <= 1
            np.testing.assert_array_equal(y, z)


class Wrong(Stand):
    """Its engines answer something else."""

    def load(self, engine: bytes, names: Sequence[str], device: torch.device) -> Callable[..., torch.Tensor]:
        right = super().load(engine, names, device)
        return lambda *inputs: right(*inputs).roll(1, -1)


class Unbuildable(Stand):
    def build(self, program: torch.export.ExportedProgram, inputs: Sequence[torch.Tensor], batch: int) -> bytes:
        self.builds.append(batch)
        raise KeyError("aten.unheard_of")


class Unloadable(Stand):
    """Its engines can't be loaded, but for ``after`` of them."""

    def __init__(self, after: int = 1000) -> None:
        super().__init__()
        self.after = after

    def load(self, engine: bytes, names: Sequence[str], device: torch.device) -> Callable[..., torch.Tensor]:
        right = super().load(engine, names, device)
        if self.loads <= self.after:
            raise RuntimeError("Unable to deserialize the TensorRT engine")
        return right


def opened(stand: Stand, folder: Path, the_task=None) -> GpuBackend:
    return tensorrt.open_with(the_task or task(), [HostDevice()], stand, EngineCache(folder))


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Wrong, "answers wrongly"), (Unbuildable, "unheard_of"), (Unloadable, "deserialize")],
    ids=["wrong", "not built", "not loaded"],
)
def test_what_is_of_no_use_leaves_the_gpu_to_others_and_is_not_built_again(kind, said: str, tmp_path: Path):
    for builds in ([4], []):
        stand = kind()
        with pytest.raises(BackendError, match=said):
            opened(stand, tmp_path)
        assert stand.builds == builds


def test_what_can_t_be_exported_leaves_the_gpu_to_others(tmp_path: Path, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("could not extract specialized integer")

    monkeypatch.setattr(tensorrt, "export", fail)
    with pytest.raises(BackendError, match="can't be exported"):
        opened(Stand(), tmp_path)


def test_an_engine_in_the_cache_that_can_t_be_loaded_is_built_again(tmp_path: Path):
    opened(Stand(), tmp_path)
    stand = Unloadable(after=1)
    restored = run()
    opened(stand, tmp_path).restore(restored)
    assert stand.builds == [4] and (restored.targets[0][0] != restored.frames[0][0]).any()
    later = Stand()
    opened(later, tmp_path)
    assert later.builds == []


def test_one_engine_built_ahead_serves_clips_of_many_and_of_few_tiles(tmp_path: Path):
    stand = Stand()
    tensorrt.engine_network(
        network(), HostDevice(), (32, 32), tensorrt.DEFAULT_BATCH, "fp32", stand, EngineCache(tmp_path)
    )
    few = tiles.plan(32, 48, (32, 32), 8, 16, 8)
    assert few.count < tensorrt.DEFAULT_BATCH < task().plan.count
    for the_task in (task(), task(plan=few, clip=replace(task().clip, width=32, height=48))):
        opened(stand, tmp_path, the_task)
    assert stand.builds == [tensorrt.DEFAULT_BATCH]


def test_an_engine_without_room_gives_way_to_a_smaller_one(tmp_path: Path):
    class Large(Stand):
        def load(self, engine: bytes, names: Sequence[str], device: torch.device) -> Callable[..., torch.Tensor]:
            right, largest = super().load(engine, names, device), self.builds[-1]

            def call(*inputs: torch.Tensor) -> torch.Tensor:
                if largest > 2:
                    raise RuntimeError("Unable to (re)create TensorRT execution context")
                return right(*inputs)

            return call

    stand = Large()
    assert "batches of 1" in opened(stand, tmp_path).describe()
    assert stand.builds == [4, 1]


def test_an_engine_that_there_was_no_room_to_try_is_tried_when_there_is(tmp_path: Path):
    def built_without_room(right: bool) -> Path:
        class Tight(Stand if right else Wrong):
            def load(self, engine: bytes, names: Sequence[str], device: torch.device) -> Callable[..., torch.Tensor]:
                raise torch.OutOfMemoryError("stand-in")

        folder = tmp_path / str(right)
        with pytest.raises(DiqpError, match="too little free memory"):
            opened(Tight(), folder)
        return folder

    folder, later = built_without_room(right=False), Wrong()
    for _ in range(2):
        with pytest.raises(BackendError, match="answers wrongly"):
            opened(later, folder)
    assert later.builds == [] and later.loads == 1, "what it was found to be is remembered"

    folder, later = built_without_room(right=True), Stand()
    opened(later, folder)
    opened(later, folder)
    assert later.builds == []


class Streams:
    """torch.cuda's streams, by what each knows to have been done before whatever it does next."""

    class Stream:
        def __init__(self, device: object = None) -> None:
            self.done: set[int] = set()

        def wait_stream(self, other: "Streams.Stream") -> None:
            self.done |= other.done

    def __init__(self) -> None:
        self.current = self.Stream()

    def current_stream(self, device: object = None) -> "Streams.Stream":
        return self.current

    @contextmanager
    def stream(self, stream: "Streams.Stream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


def test_runs_of_one_engine_follow_each_other_whoever_asks(monkeypatch):
    """An engine computes in one place: two runs at once, on streams of their own, would be wrong in both."""
    streams, runs, recorded = Streams(), itertools.count(), []
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: recorded.append(stream))

    def engine(value: torch.Tensor) -> torch.Tensor:
        number = next(runs)
        assert streams.current.done >= set(range(number)), "all earlier runs are over when this one begins"
        assert streams.current.done >= {int(value)}, "what it reads is there"
        streams.current.done.add(number)
        return torch.tensor(number)

    one = tensorrt.OneStream(engine, torch.device("cpu"))
    slots = [streams.Stream(), streams.Stream()]
    for step in range(6):
        slot = slots[step % 2]
        slot.done.add(100 + step)
        with streams.stream(slot):
            number = int(one(torch.tensor(100 + step)))
            assert number in slot.done, "who asked goes on behind it"
    assert recorded == slots * 3


def test_each_torch_tensorrt_is_told_what_it_knows(tmp_path: Path):
    """By themselves they take every bias of attention for one that looks back only."""
    common = ("self", "disable_tf32", "timing_cache_path", "attn_bias_is_causal", "workspace_size")
    newest = tensorrt.build_options(common, tmp_path)
    oldest = tensorrt.build_options((*common, "use_explicit_typing"), tmp_path)
    assert newest == {
        "disable_tf32": True,
        "attn_bias_is_causal": False,
        "timing_cache_path": str(tmp_path / "timing.cache"),
    }
    assert oldest == {**newest, "use_explicit_typing": True}
    assert tensorrt.build_options((), tmp_path) == {}


def test_weights_and_configuration_are_part_of_the_key():
    device, versions = HostDevice(), Stand().versions()
    made = network()

    def key(of: DiQP):
        return tensorrt.engine_key(of, device, (32, 32), 2, "fp16", versions)

    assert key(made) == key(network())
    with torch.no_grad():
        next(made.parameters()).view(-1)[0] += 1e-3
    assert key(made) != key(network())
    renamed = DiQP(replace(RELEASED_LIKE, overlap=16)).prepare()
    renamed.load_state_dict(network().state_dict())
    assert key(renamed).weights == key(network()).weights
    assert key(renamed) != key(network())


@pytest.mark.parametrize("error", [ImportError("libnvinfer.so.11"), Exception("make sure tensorrt lib is in the path")])
def test_a_broken_torch_tensorrt_is_a_reason_and_not_an_error(error, monkeypatch, tmp_path: Path):
    package = tmp_path / "torch_tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text(f"raise {type(error).__name__}({str(error)!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    reason = unavailable("tensorrt")
    assert reason is not None and str(error) in reason


@pytest.mark.parametrize(("version", "old"), [("2.11.0", True), ("2.12.0", False), ("2.14.0+cu130", False)])
def test_a_torch_tensorrt_that_nothing_was_proven_of_is_refused(version: str, old: bool, monkeypatch):
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch_tensorrt", SimpleNamespace(__version__=version))
    reason = unavailable("tensorrt")
    assert (reason is not None and "2.12" in reason and version in reason) if old else reason is None


def test_a_missing_torch_tensorrt_names_the_pip_command(monkeypatch):
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: None)
    assert "pip install torch-tensorrt" in (unavailable("tensorrt") or "")
