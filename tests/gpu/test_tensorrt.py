"""The TensorRT backend without TensorRT: what is exported, and engines that a stand-in builds and runs."""

import io
import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import LITE_LIKE
from stand_in_device import HostDevice
from test_gpu_backend import RELEASED_LIKE, beside_run, beside_task, network, run, task

from vsdiqp.backends import cuda, tensorrt, unavailable
from vsdiqp.backends.cuda import GpuBackend
from vsdiqp.backends.engine_cache import EngineCache
from vsdiqp.errors import BackendError
from vsdiqp.network import DiQP, DiQPConfig

ROOT = Path(__file__).resolve().parents[2]
PROVEN = json.loads((ROOT / "tests/data/tensorrt_converters.json").read_text())
LITE = DiQPConfig.from_dict(tomllib.loads((ROOT / "vsdiqp/training/configs/lite.toml").read_text())["network"])
# As released, but for the number of blocks and channels: the same kinds of operations.
RELEASED = DiQPConfig(embed_dim=3, depths=(1, 2, 2, 1, 1, 1, 2, 1, 1), tile=256)


class Stand:
    """Builds and runs engines with torch.export in TensorRT's place."""

    def __init__(self) -> None:
        self.builds: list[int] = []
        self.loads = 0

    def versions(self) -> dict[str, str]:
        return {"tensorrt": "none", "torch_tensorrt": "none"}

    def build(self, program: torch.export.ExportedProgram, inputs: Sequence[torch.Tensor], batch: int) -> bytes:
        self.builds.append(batch)
        file = io.BytesIO()
        torch.export.save(program, file)
        return file.getvalue()

    def load(self, engine: bytes, names: Sequence[str], device: torch.device) -> Callable[..., torch.Tensor]:
        self.loads += 1
        program = torch.export.load(io.BytesIO(engine))
        assert tuple(names) == tensorrt.input_names(program)
        return program.module()


def exported(config: DiQPConfig, side: int, batch: int = 2) -> torch.export.ExportedProgram:
    tiles = tensorrt.TileNetwork(DiQP(config).to_precision(torch.float16)).eval()
    return tensorrt.export(tiles, tensorrt.example_inputs(tiles, (side, side), batch, torch.device("cpu")), batch)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config", "side"), [("released", RELEASED, 128), ("lite", LITE, LITE.multiple * 2)])
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


def test_an_engine_that_answers_wrongly_is_not_kept(tmp_path: Path):
    class Wrong(Stand):
        def load(self, engine: bytes, names: Sequence[str], device: torch.device) -> Callable[..., torch.Tensor]:
            right = super().load(engine, names, device)
            return lambda *inputs: right(*inputs).roll(1, -1)

    for stand in (Wrong(), Wrong()):
        with pytest.raises(BackendError, match="answers wrongly"):
            tensorrt.engine_network(network(), HostDevice(), (32, 32), 1, "fp32", stand, EngineCache(tmp_path))
        assert stand.builds == [1], "there was none in the cache"


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


def test_a_missing_torch_tensorrt_names_the_pip_command(monkeypatch):
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: None)
    assert "pip install torch-tensorrt" in (unavailable("tensorrt") or "")
