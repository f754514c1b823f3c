"""NVRTC, the compiler that a user's GPU stack runs. It needs no GPU."""

from types import ModuleType

import pytest

from vsdiqp.kernels import sources


def nvrtc() -> ModuleType:
    """NVIDIA's Python bindings, which CUDA builds of torch bring with them."""
    bindings = pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC, which CUDA builds of torch bring")
    try:
        bindings.nvrtcVersion()
    except Exception as error:
        pytest.skip(f"NVRTC can't be loaded: {error}")
    return bindings


def compile_cubin(source: str, architecture: str, options: tuple[str, ...]) -> bytes:
    """The machine code for ``architecture`` (sm_90, say); fails with the compiler's log."""
    return _compile(source, architecture, options, "CUBIN")


def compile_ptx(source: str, architecture: str, options: tuple[str, ...]) -> str:
    """The code that a driver would assemble, likewise (compute_90)."""
    return _compile(source, architecture, options, "PTX").rstrip(b"\0").decode()


def _compile(source: str, architecture: str, options: tuple[str, ...], kind: str) -> bytes:
    api = nvrtc()
    error, handle = api.nvrtcCreateProgram(sources.text(source).encode(), source.encode(), 0, [], [])
    assert error == api.nvrtcResult.NVRTC_SUCCESS
    arguments = [option.encode() for option in (f"-arch={architecture}", *options)]
    (error,) = api.nvrtcCompileProgram(handle, len(arguments), arguments)
    _, size = api.nvrtcGetProgramLogSize(handle)
    # The bytes are written into. An empty log is one byte long, and bytes of length one are shared by all of Python.
    log = bytes(size + 1)
    api.nvrtcGetProgramLog(handle, log)
    assert error == api.nvrtcResult.NVRTC_SUCCESS, log.decode()
    assert b"warning" not in log, log.decode()
    _, size = getattr(api, f"nvrtcGet{kind}Size")(handle)
    made = bytes(size)
    getattr(api, f"nvrtcGet{kind}")(handle, made)
    api.nvrtcDestroyProgram(handle)
    return made
