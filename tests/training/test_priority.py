import os
import sys
import threading
from pathlib import Path

import pytest

from vsdiqp.training.priority import ordinary_threads

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")


def may_raise_priority() -> bool:
    """What a thread started now could do."""
    found: list[bool] = []

    def look() -> None:
        status = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()
        capabilities = next(line for line in status.splitlines() if line.startswith("CapEff"))
        found.append(bool(int(capabilities.split()[1], 16) >> 23 & 1))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def test_threads_started_inside_stay_ordinary_and_the_right_comes_back() -> None:
    before = may_raise_priority()
    with ordinary_threads():
        assert not may_raise_priority()
    assert may_raise_priority() == before
    with pytest.raises(KeyError), ordinary_threads():
        raise KeyError
    assert may_raise_priority() == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root has the right to lose")
def test_real_time_scheduling_is_refused_inside() -> None:
    with ordinary_threads(), pytest.raises(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
