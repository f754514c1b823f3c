"""The Triton kernels compiled for GPUs that are not here, with the block sizes that the backend uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton, which CUDA builds of torch bring")

# Shared memory that a block may ask for: 163 KiB on sm_80, 99 on sm_86 and sm_120, 227 on sm_90.
LIMITS = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", LIMITS)
def test_kernels_fit_and_spill_nothing(architecture: int, tmp_path: Path):
    # In a process of its own: this one may have Triton's interpreter in the compiler's place.
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(Path(__file__).with_name("compile_blocks.py")), str(architecture)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    for name, use in json.loads(done.stdout)[str(architecture)].items():
        assert use["stack"] == 0, f"{name} spills {use['stack']} bytes of registers a thread"
        assert use["shared"] <= LIMITS[architecture], name
        assert use["tensor_cores"] or use["pointwise"], f"{name} multiplies without tensor cores"
