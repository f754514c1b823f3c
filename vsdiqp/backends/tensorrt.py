"""The network as a TensorRT engine, made by Torch-TensorRT; planes, tiles and slots are the CUDA backend's.

torch.export -> torch_tensorrt.dynamo -> one engine. The engine is strongly typed: numbers have the types that the
module gives them (`DiQP.to_precision`). Tile sides are fixed, so one engine serves every video size; the batch is a
range. Guides of whole frames run in torch, once a group, and go in as inputs.
"""

import copy
import hashlib
import importlib.util
import inspect
import json
import logging
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from vsdiqp import __version__
from vsdiqp.backends import cuda, memory, trial
from vsdiqp.backends.base import Network, Predictor, Task
from vsdiqp.backends.cuda import DTYPES, GpuBackend
from vsdiqp.backends.device import Device, on
from vsdiqp.backends.engine_cache import EngineCache, EngineKey
from vsdiqp.backends.memory import Size
from vsdiqp.errors import BackendError, DiqpError
from vsdiqp.network import DiQP

OLDEST: Final = (2, 12)
"""The first torch-tensorrt that is known to convert attention as it is (scripts/tensorrt_converters). Those before take
it apart, and may take the bias for one that looks back only."""
BATCHES: Final = (1, 2, 4, 8)
"""Largest batches that engines are built for: fewer engines serve more video sizes."""
DEFAULT_BATCH: Final = 4
"""Of engines, where nobody says: one that is built ahead serves every script, whatever memory is free as it opens."""

_log = logging.getLogger("vsdiqp")


def unavailable() -> str | None:
    """Why there is no TensorRT here. A torch-tensorrt that can't be imported is a reason, not an exception."""
    reason = cuda.unavailable()
    if reason is not None:
        return reason
    if importlib.util.find_spec("torch_tensorrt") is None:
        return "torch-tensorrt is not installed: pip install torch-tensorrt"
    try:
        import torch_tensorrt

        version = str(torch_tensorrt.__version__)
    except Exception as error:  # it raises plain Exception when TensorRT's libraries are missing
        return f"torch-tensorrt can't be imported ({type(error).__name__}: {error})"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        return f"torch-tensorrt {version} is too old: pip install 'torch-tensorrt>={OLDEST[0]}.{OLDEST[1]}'"
    return None


def open_backend(task: Task) -> GpuBackend:
    """The network as an engine on the GPUs of the task; builds the engine if there is none. Raises DiqpError."""
    return open_with(task, cuda.cuda_devices(task.device), TorchTensorRT(), EngineCache())


def open_with(task: Task, devices: Sequence[Device], compiler: "Compiler", cache: EngineCache) -> GpuBackend:
    """`open_backend` on these devices. What fails in a compiler or an engine, in whatever way, is a BackendError."""
    precision = "fp16" if task.precision == "auto" else task.precision

    def predictor(network: Network, device: Device, size: Size) -> Predictor:
        if not isinstance(network, DiQP):
            raise DiqpError("backend 'tensorrt' runs DiQP networks only; use backend='cuda'")
        tile = (size.plan.columns.side, size.plan.rows.side)
        # A frame of fewer tiles has the engine that is there for all.
        whole = not task.batch and size.batch == memory.even(size.plan.count, DEFAULT_BATCH)
        batch = DEFAULT_BATCH if whole else size.batch
        return engine_network(network, device, tile, batch, precision, compiler, cache)

    with _failing("TensorRT can't run the network"):
        # It keeps state in an execution context that a graph of ours would not see. And what memory it takes torch
        # does not know: batches are not measured, but halved until they fit.
        return GpuBackend(task, devices, precision, "tensorrt", predictor, record=False, batch=DEFAULT_BATCH)


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Turns what torch-tensorrt, torch.export and engines raise into BackendError; want of memory stays as it is."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiqpError) or memory.ran_out(error):
            raise
        raise BackendError(
            f"{what} ({type(error).__name__}: {str(error).strip()[:500]}); use backend='cuda', or report this with the "
            "versions that 'vsdiqp info' prints"
        ) from error


class Compiler(Protocol):
    """What makes and runs engines; the tests have a stand-in."""

    def versions(self) -> dict[str, str]:
        """``tensorrt``, ``torch_tensorrt``."""
        ...

    def build(self, program: torch.export.ExportedProgram, inputs: Sequence[Tensor], batch: int) -> bytes:
        """An engine for batches from 1 to ``batch``; the first dimension of the batched inputs is the batch.

        Raises BackendError; other errors where memory does not suffice (`memory.ran_out`).
        """
        ...

    def load(self, engine: bytes, names: Sequence[str], device: torch.device) -> Callable[..., Tensor]:
        """The engine as a function of the inputs with these names, for several threads and streams at once."""
        ...


class TileNetwork(nn.Module):
    """What is exported: a batch of tiles with everything they need as flat arguments.

    Arguments: tile, location (6, B, 1 fp32), where the network has neighbours beside, where it looks ahead ahead_tile
    and decay, and the guides of whole frames (batch 1), Look Around's levels first.
    """

    def __init__(self, network: DiQP) -> None:
        super().__init__()
        self.network = network
        config = network.config
        self.around, self.ahead, self.neighbours = len(config.look_around), len(config.look_ahead), config.neighbours
        self._batched = (0, 1, *((0,) if self.neighbours else ()), *((0,) if self.ahead else ()))

    def arguments(
        self,
        tile: Tensor,
        ahead_tile: Tensor,
        guides: Any,
        location: Tensor,
        weight_decay: Tensor,
        beside: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """`DiQP.predict`'s arguments as this module's."""
        seen = () if beside is None else (beside,)
        ahead = (ahead_tile, weight_decay) if self.ahead else ()
        return (tile, location, *seen, *ahead, *guides[0], *guides[1])

    def batched(self, index: int) -> int | None:
        """The dimension of an argument that is the batch; None where there is none."""
        return self._batched[index] if index < len(self._batched) else None

    def forward(self, *inputs: Tensor) -> Tensor:
        """The residual: B, 3, 3, H, W."""
        tile, location, *rest = inputs
        beside = rest.pop(0) if self.neighbours else None
        ahead, decay = tile[:, :, :2], location[:1, :1]
        if self.ahead:
            ahead, decay, *rest = rest
        guides = (tuple(rest[: self.around]), tuple(rest[self.around :]))
        return self.network.predict(tile, ahead, guides, location, decay, beside)


class EngineNetwork:
    """A predictor whose tiles go through an engine."""

    def __init__(self, tiles: TileNetwork, run: Callable[..., Tensor]) -> None:
        self._tiles, self._run = tiles, run

    def frame_guides(self, around: Tensor, ahead_scaled: Tensor, weight_decay: Tensor) -> Any:
        """See `DiQP.frame_guides`. Contiguous, as engines want them: once a run instead of once a batch."""
        guides = self._tiles.network.frame_guides(around, ahead_scaled, weight_decay)
        return tuple(tuple(guide.contiguous() for guide in level) for level in guides)

    def predict(
        self,
        tile: Tensor,
        ahead_tile: Tensor,
        guides: Any,
        location: Tensor,
        weight_decay: Tensor,
        beside: Tensor | None = None,
    ) -> Tensor:
        """See `DiQP.predict`."""
        return self._run(*self._tiles.arguments(tile, ahead_tile, guides, location.float(), weight_decay, beside))


def example_inputs(tiles: TileNetwork, tile: tuple[int, int], batch: int, device: torch.device) -> tuple[Tensor, ...]:
    """Arguments of `TileNetwork` for tiles (width, height); their numbers mean nothing."""
    config = tiles.network.config
    height, width = tile[1], tile[0]

    def pictures(items: int, frames: int, size: tuple[int, int]) -> Tensor:
        return torch.zeros(items, 3, frames, *size, dtype=torch.float32, device=device)

    thumbnail = config.guide_size or (height, width)
    decay = torch.ones(1, 1, 1, 1, 1, dtype=torch.float32, device=device)
    with torch.no_grad():
        around = pictures(1, 2, thumbnail if config.uses_around else (0, 0))
        guides = tiles.network.frame_guides(around, pictures(1, 2, thumbnail), decay)
    location = torch.zeros(6, batch, 1, dtype=torch.float32, device=device)
    seen = None
    if config.neighbours:
        seen = torch.zeros(batch, 3, config.seen, height, width, dtype=torch.float32, device=device)
    return tiles.arguments(
        pictures(batch, 3, (height, width)), pictures(batch, 2, (height, width)), guides, location, decay, seen
    )


def export(tiles: TileNetwork, inputs: tuple[Tensor, ...], batch: int) -> torch.export.ExportedProgram:
    """The module as a graph for batches from 1 to ``batch``; with 1, the batch is fixed."""
    size = torch.export.Dim("batch", min=1, max=batch) if batch > 1 else None

    def dimensions(index: int) -> dict[int, Any] | None:
        dimension = tiles.batched(index)
        return {dimension: size} if size is not None and dimension is not None else None

    shapes = {"inputs": tuple(dimensions(index) for index in range(len(inputs)))}
    with torch.no_grad():
        return torch.export.export(tiles, inputs, dynamic_shapes=shapes)


def input_names(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Names of the arguments, which are the names of the engine's inputs."""
    return tuple(str(name) for name in program.graph_signature.user_inputs)


def engine_network(
    network: DiQP,
    device: Device,
    tile: tuple[int, int],
    batch: int,
    precision: str,
    compiler: Compiler,
    cache: EngineCache,
    again: bool = False,
) -> EngineNetwork:
    """A predictor for ``network`` (fp32, the callee's own) with an engine from the cache, built if need be.

    An engine that answers otherwise than the network does is of no use, which is remembered; ``again``: build all the
    same. Raises BackendError; other errors where memory does not suffice (`memory.ran_out`).
    """
    largest = next((b for b in BATCHES if b >= batch), batch)
    key = engine_key(network, device, tile, largest, precision, compiler.versions())
    plain = copy.deepcopy(network)
    cuda.set_exactness(DTYPES[precision])  # guides are torch's
    network.to_precision(DTYPES[precision])
    tried: list[EngineNetwork] = []

    def load(engine: bytes, names: Sequence[str]) -> EngineNetwork:
        return EngineNetwork(tiles, compiler.load(engine, names, device.torch))

    def build() -> bytes:
        with _failing("the network can't be exported"):
            inputs = example_inputs(tiles, tile, largest, device.torch)
            program = export(tiles, inputs, largest)
            names, engine = input_names(program), compiler.build(program, inputs, largest)
        try:
            with _failing(f"the engine that was built for {device.name} can't run"):
                tried.append(_tried(load(engine, names), plain, device, tile, largest, precision))
        except Exception as error:
            if not memory.ran_out(error):
                raise
            # Minutes of work are worth keeping, for when there is room to try it.
            _log.warning("too little GPU memory to try the engine that was built")
        return _packed(engine, names, tried=bool(tried))

    def found() -> EngineNetwork:
        line, _, engine = cache.get(key, build, again).partition(b"\n")
        if tried:
            return tried[0]
        about = json.loads(line)
        made = load(engine, about["names"])
        if not about["tried"]:
            try:
                _tried(made, plain, device, tile, largest, precision)
            except BackendError as error:
                cache.put(key, b"", str(error))
                raise
            cache.put(key, _packed(engine, about["names"], tried=True))
        return made

    with on(device.torch):  # TensorRT builds for, and runs on, the current one
        tiles = TileNetwork(network.to(device.torch)).eval()
        try:
            return found()
        except Exception as error:
            if isinstance(error, DiqpError) or memory.ran_out(error):
                raise
            _log.warning("the engine in the cache can't be loaded (%s); building it again", error)
            cache.drop(key)
            return found()


def _packed(engine: bytes, names: Sequence[str], tried: bool) -> bytes:
    """What is kept of an engine: a line of JSON with the names of its inputs and whether it was tried, and itself."""
    return json.dumps({"names": list(names), "tried": tried}).encode() + b"\n" + engine


def _tried(
    made: EngineNetwork, plain: DiQP, device: Device, tile: tuple[int, int], batch: int, precision: str
) -> EngineNetwork:
    """The engine, if it answers as the network does. Raises BackendError with what `trial` objects to."""
    found = trial.objection(plain, made, device.torch, DTYPES[precision], tile, batch=batch)
    if found:
        raise BackendError(
            f"the engine that was built for {device.name} answers wrongly: {found}; use backend='cuda', and please "
            "report this with what 'vsdiqp info' prints"
        )
    return made


def engine_key(
    network: DiQP, device: Device, tile: tuple[int, int], batch: int, precision: str, versions: dict[str, str]
) -> EngineKey:
    """The cache key of an engine; call it on the fp32 weights."""
    config = json.dumps(network.config.to_dict(), sort_keys=True)
    capability, driver = _gpu(device)
    return EngineKey(
        model=network.config.name,
        weights=_hash_weights(network),
        config=hashlib.sha256(config.encode()).hexdigest(),
        tile=tile,
        batch=batch,
        precision=precision,
        gpu=device.name,
        capability=capability,
        driver=driver,
        tensorrt=versions["tensorrt"],
        torch_tensorrt=versions["torch_tensorrt"],
        torch=torch.__version__,
        vsdiqp=__version__,
    )


class TorchTensorRT:
    """Engines by torch-tensorrt. Imports it when used."""

    def versions(self) -> dict[str, str]:
        """See `Compiler.versions`: of what is imported, since the packages' names change with CUDA's version."""
        import torch_tensorrt

        return {
            "tensorrt": str(getattr(sys.modules.get("tensorrt"), "__version__", "none")),
            "torch_tensorrt": str(torch_tensorrt.__version__),
        }

    def build(self, program: torch.export.ExportedProgram, inputs: Sequence[Tensor], batch: int) -> bytes:
        """See `Compiler.build`."""
        import torch_tensorrt
        from torch_tensorrt.dynamo import convert_exported_program_to_serialized_trt_engine as convert

        specifications = [_specification(torch_tensorrt, value, dims) for value, dims in _ranges(program, inputs)]
        with tempfile.TemporaryDirectory() as folder:
            options = build_options(inspect.signature(convert).parameters, Path(folder))
            with _failing("TensorRT could not build the engine"):
                return bytes(convert(program, arg_inputs=specifications, device=inputs[0].device, **options))

    def load(self, engine: bytes, names: Sequence[str], device: torch.device) -> Callable[..., Tensor]:
        """See `Compiler.load`."""
        import torch_tensorrt
        from torch_tensorrt.dynamo import CompilationSettings
        from torch_tensorrt.dynamo.runtime import TorchTensorRTModule

        settings = CompilationSettings(device=torch_tensorrt.Device(gpu_id=device.index or 0))
        module = TorchTensorRTModule(
            serialized_engine=engine,
            input_binding_names=list(names),
            output_binding_names=["output0"],
            name="vsdiqp",
            settings=settings,
        )
        return OneStream(module, device)


def build_options(known: Container[str], folder: Path) -> dict[str, Any]:
    """What torch-tensorrt is told, of what the version at hand (``known``: names of its parameters) can be told."""
    wanted = {
        "use_explicit_typing": True,  # since 2.12 it knows nothing else
        "disable_tf32": True,  # fp32 is for checks
        # Or attention that has been taken apart looks back only, in place of the bias that it is given.
        "attn_bias_is_causal": False,
        # Not the default's one file for all of the machine's users and builds.
        "timing_cache_path": str(folder / "timing.cache"),
    }
    return {name: value for name, value in wanted.items() if name in known}


class OneStream:
    """An engine for several streams: it has one place to compute in, so its runs must follow each other.

    Since 2.13 torch-tensorrt queues a run on the caller's stream, where another's may still be at work beside it.
    """

    def __init__(self, engine: Callable[..., Tensor], device: torch.device) -> None:
        self._engine, self._device = engine, device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._turn = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Queue a run behind all others, and behind it what the current stream is given next."""
        current = torch.cuda.current_stream(self._device)
        with self._turn:
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                result = self._engine(*inputs)
            current.wait_stream(self._stream)
        result.record_stream(current)
        return result


def _ranges(
    program: torch.export.ExportedProgram, inputs: Sequence[Tensor]
) -> list[tuple[Tensor, dict[int, tuple[int, int]]]]:
    """For every input, the dimensions that have a range, with its ends."""
    found = []
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, value in zip(input_names(program), inputs, strict=True):
        dims: dict[int, tuple[int, int]] = {}
        for index, size in enumerate(placeholders[name].meta["val"].shape):
            if isinstance(size, torch.SymInt):
                limits = program.range_constraints[size.node.expr]
                dims[index] = (int(limits.lower), int(limits.upper))
        found.append((value, dims))
    return found


def _specification(torch_tensorrt: Any, value: Tensor, dims: dict[int, tuple[int, int]]) -> Any:
    if not dims:
        return torch_tensorrt.Input(shape=tuple(value.shape), dtype=value.dtype)
    smallest = tuple(dims[i][0] if i in dims else n for i, n in enumerate(value.shape))
    largest = tuple(dims[i][1] if i in dims else n for i, n in enumerate(value.shape))
    return torch_tensorrt.Input(min_shape=smallest, opt_shape=largest, max_shape=largest, dtype=value.dtype)


def _hash_weights(network: nn.Module) -> str:
    """SHA-256 of the state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _gpu(device: Device) -> tuple[str, str]:
    """Compute capability and driver version."""
    if device.torch.type != "cuda":
        return "none", "none"
    from cupy.cuda import runtime

    capability = torch.cuda.get_device_capability(device.torch)
    return f"{capability[0]}.{capability[1]}", str(runtime.driverGetVersion())
