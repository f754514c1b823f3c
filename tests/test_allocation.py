"""Freed memory is kept, unless the user has told the C library what to do."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from vsdiqp.allocation import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(200 << 17)  # 200 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
print(first, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as on Linux")
@pytest.mark.parametrize(("variables", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "1000000"}, False)])
def test_memory_once_had_is_had_again_without_the_system(variables: dict[str, str], kept: bool) -> None:
    if os.confstr("CS_GNU_LIBC_VERSION") is None:
        pytest.skip("this C library is not glibc")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | variables
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    first, again = map(int, done.stdout.split())
    assert first > 50, "fresh memory comes by faults, of huge pages or small ones"
    assert (again < first / 10) == kept
