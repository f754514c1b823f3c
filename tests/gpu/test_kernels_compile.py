"""The CUDA C through NVRTC, the compiler that a user's GPU stack runs, for every architecture named. No GPU needed."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from nvrtc import compile_cubin, nvrtc

from vsdiqp.clip import ClipFormat
from vsdiqp.kernels import depthwise_cuda, layouts, program, sources

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

FORMATS = {
    "8 bit": ClipFormat("YUV", "integer", 8, 1, 1, 64, 64, 3),
    "16 bit": ClipFormat("YUV", "integer", 16, 1, 1, 64, 64, 3),
    "half": ClipFormat("YUV", "float", 16, 1, 1, 64, 64, 3),
    "float": ClipFormat("YUV", "float", 32, 1, 1, 64, 64, 3),
}


def usage_of(kernel: str, cubin: bytes, folder: Path) -> dict[str, int] | None:
    """Registers of a thread and bytes of memory by their kind; nothing without Triton, which brings NVIDIA's tools."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    (folder / "kernel.cubin").write_bytes(cubin)
    tool = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    command = [str(tool), "-res-usage", str(folder / "kernel.cubin")]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(rf"Function {kernel}:\s+(.*)", usage)
    assert found is not None, usage
    return {kind: int(number) for kind, number in re.findall(r"(\w+):(\d+)", found[1])}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_compiles_the_kernels(architecture: str):
    api = nvrtc()
    _, known = api.nvrtcGetSupportedArchs()
    if int(architecture[3:]) not in known:
        pytest.skip(f"this NVRTC does not know {architecture}")
    options = layouts.compile_options(FORMATS["16 bit"], half_tiles=True, seen=4)
    for source, kernels in layouts.modules(4).items():
        cubin = compile_cubin(source, architecture, options)
        for kernel in kernels:
            assert kernel.encode() in cubin, "the launcher finds kernels by their plain names"


@pytest.mark.parametrize("half_tiles", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_compiles(name: str, half_tiles: bool):
    for source in layouts.modules(4):
        compile_cubin(source, "sm_90", layouts.compile_options(FORMATS[name], half_tiles, 4))


@pytest.mark.parametrize("seen", [2, 7, 10])
def test_every_number_of_neighbours_compiles(seen: int):
    compile_cubin(sources.ALIGNMENT, "sm_90", layouts.compile_options(FORMATS["8 bit"], False, seen))


@pytest.mark.parametrize("brain", [False, True], ids=["half", "bfloat16"])
@pytest.mark.parametrize("frames, widths", [(3, (96, 368, 720)), (1, (144, 192, 288, 384))])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_depthwise_step_compiles_and_spills_nothing(
    architecture: str, frames: int, widths: tuple[int, ...], brain: bool, tmp_path: Path
):
    _, known = nvrtc().nvrtcGetSupportedArchs()
    if int(architecture[3:]) not in known:
        pytest.skip(f"this NVRTC does not know {architecture}")
    form = depthwise_cuda.FORMS[frames]
    for channels in widths:
        cubin = compile_cubin(sources.DEPTHWISE, architecture, depthwise_cuda.options(frames, channels, brain))
        assert b"depthwise" in cubin
        usage = usage_of("depthwise", cubin, tmp_path)
        if usage is None:
            continue
        assert usage["REG"] <= min(128, 65536 // (form.threads * form.blocks))
        memory = {usage[kind] for kind in ("STACK", "SHARED", "LOCAL")}
        assert memory == {0}, f"{channels} channels: registers spill, or shared memory is used: {usage}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_search_spills_nothing_and_leaves_room_for_other_warps(architecture: str, tmp_path: Path):
    _, known = nvrtc().nvrtcGetSupportedArchs()
    if int(architecture[3:]) not in known:
        pytest.skip(f"this NVRTC does not know {architecture}")
    options = layouts.compile_options(FORMATS["8 bit"], True, 4)
    usage = usage_of("search_blocks", compile_cubin(sources.ALIGNMENT, architecture, options), tmp_path)
    if usage is None:
        pytest.skip("nobody but Triton brings NVIDIA's tools")
    assert usage["REG"] <= 65536 // (program.THREADS * 4)
    assert usage["STACK"] == usage["LOCAL"] == 0, usage


def test_networks_without_neighbours_compile_nothing_for_them():
    assert list(layouts.modules(0)) == [sources.PLANES]
