"""Work for other processes: what they make arrives, and none is ever waited for in vain."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from vsdiqp.training.processes import AHEAD, ProcessDiedError, in_processes

ENDLESS = itertools.repeat(None)


def squares(process: int) -> Callable[[int], tuple[int, int, int]]:
    return lambda task: (process, task, task * task)


def tensors(process: int) -> Callable[[int], torch.Tensor]:
    return lambda task: torch.full((1000, 1000), float(task))


def large(process: int) -> Callable[[None], bytes]:
    """Much more than a pipe holds."""
    return lambda _: bytes(1 << 26)


def ending(process: int) -> Callable[[int], int]:
    """Tasks: 0, or how this process is to end."""

    def work(task: int) -> int:
        if task < 0:
            os.kill(os.getpid(), -task)
        if task > 0:
            os._exit(task)
        return task

    return work


def failing(process: int) -> Callable[[Any], Any]:
    raise ValueError("of a process")


class Noting:
    """Writes down how much it has made."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, process: int) -> Callable[[None], None]:
        numbers = itertools.count(1)

        def work(_: None) -> None:
            self.path.write_text(str(next(numbers)))

        return work


def run[A, T](
    begin: Callable[[int], Callable[[A], T]], tasks: Iterable[A], processes: int = 2
) -> contextlib.closing[Any]:
    return contextlib.closing(in_processes(begin, tasks, processes))


@pytest.mark.parametrize("tasks", [0, 1, 50])
def test_every_task_is_done_once(tasks: int) -> None:
    with run(squares, range(tasks)) as answers:
        found = list(answers)
    assert sorted(answer[1:] for answer in found) == [(task, task * task) for task in range(tasks)]
    assert len({process for process, _, _ in found}) == min(tasks, 2)
    assert not multiprocessing.active_children()


def test_tensors_are_not_sent_but_shared() -> None:
    with run(tensors, range(6)) as answers:
        found = list(answers)
    assert all(tensor.is_shared() for tensor in found)
    assert sorted(tensor.unique().item() for tensor in found) == list(range(6))


def test_none_runs_away_from_who_takes_what_it_makes(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with run(Noting(path), ENDLESS, processes=1) as answers:
        for _ in range(3):
            next(answers)
        time.sleep(0.5)
        assert int(path.read_text()) <= 3 + AHEAD


@pytest.mark.parametrize(("task", "how"), [(3, "exit code 3"), (-signal.SIGKILL, "SIGKILL")])
def test_how_a_process_has_ended_is_said(task: int, how: str) -> None:
    with run(ending, [0, 0, 0, task, 0]) as answers, pytest.raises(ProcessDiedError) as raised:
        list(answers)
    assert str(raised.value) == how
    assert not multiprocessing.active_children()


def test_what_a_task_raises_is_raised_with_the_place() -> None:
    with run(failing, range(3)) as answers, pytest.raises(ValueError, match="of a process") as raised:
        next(answers)
    assert "in failing" in raised.value.__notes__[0]


@pytest.mark.parametrize("after", [0.0, 0.3])
def test_one_that_is_killed_in_the_middle_of_a_message(after: float) -> None:
    """After a while it stands in the middle of the second, of which a pipe holds the beginning."""
    with run(large, ENDLESS, processes=1) as answers:
        next(answers)
        time.sleep(after)
        (process,) = multiprocessing.active_children()
        process.kill()
        with pytest.raises(ProcessDiedError, match="SIGKILL"):
            for _ in range(AHEAD + 1):
                next(answers)


def test_being_told_to_stop_ends_it_and_its_processes() -> None:
    stop = threading.Event()
    answers = in_processes(large, ENDLESS, 2, stop)
    next(answers)
    stop.set()
    assert len(list(answers)) < 2
    assert not multiprocessing.active_children()


ORPHANS = """
import multiprocessing, os, signal
from test_processes import ENDLESS, large
from vsdiqp.training.processes import in_processes
if __name__ == "__main__":
    answers = in_processes(large, ENDLESS, 2)
    next(answers)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(pid: int) -> bool:
    """Zombies, which wait for whoever inherited them, are not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_process_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 2
    for _ in range(300):
        if not any(map(alive, pids)):
            break
        time.sleep(0.1)
    assert not any(map(alive, pids))
