"""Work for other processes, of which any may die at any moment.

Each has a pipe of its own, and there is no lock that two of them share. One that is killed (by the system, where memory
has run out) while it writes or holds a lock would leave a shared queue waiting for ever, and with it torch's
``DataLoader`` (pytorch issue 21554); here its pipe ends, whatever it was doing.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

AHEAD = 2
"""Tasks that a process has at once: the answer to one is on its way while it works on the next."""
_LOOK_UP = 0.1
"""Seconds after which whoever waits looks whether it still should."""


class ProcessDiedError(Exception):
    """A process has ended that had work to do. The text says how: a signal's name, or an exit code."""


def in_processes[A, T](
    begin: Callable[[int], Callable[[A], T]], tasks: Iterable[A], processes: int, stop: threading.Event | None = None
) -> Generator[T]:
    """What ``begin(k)``, called once in process k of ``processes``, makes of ``tasks``, as it comes in.

    ``begin``, tasks and what is made are pickled; tensors stay where they are, in memory that is shared. Ends with the
    tasks, when ``stop`` is set, or by being closed. No process outlives it, nor its parent: what is at work then is
    killed.

    Raises what a task raises, and ProcessDiedError when a process has ended, by its own fault or another's.
    """
    # Not forks: what the threads of this process hold would be held for ever.
    context = multiprocessing.get_context("spawn")
    waiting = iter(tasks)
    at_work: dict[Connection, BaseProcess] = {}
    asked = 0
    try:
        for number in range(processes):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_work, args=(theirs, begin, number), daemon=True)
            at_work[ours] = process
            process.start()
            theirs.close()  # open here as well, the pipe would outlive who writes to it
            asked += sum(_ask(ours, waiting) for _ in range(AHEAD))
        while asked and not (stop is not None and stop.is_set()):
            for ready in wait(at_work, _LOOK_UP):
                assert isinstance(ready, Connection)
                try:
                    done, answer = ready.recv()
                except Exception as error:  # what it is depends on what the process was doing
                    raise ProcessDiedError(_ending(at_work[ready], error)) from None
                if not done:
                    raise answer
                asked += _ask(ready, waiting) - 1
                yield answer
    finally:
        for ours, process in at_work.items():
            if process.pid is not None:
                process.kill()
                process.join()
            ours.close()


def _ask(process: Connection, tasks: Iterable[Any]) -> bool:
    """Give a process its next task: whether there was one."""
    for task in tasks:
        with contextlib.suppress(ConnectionError):  # has it died, then what it had sent is to be read, and its end
            process.send(task)
        return True
    return False


def _ending(process: BaseProcess, error: Exception) -> str:
    process.join(1)  # the pipe ends a little before the process
    if process.exitcode is None:
        return (str(error) or type(error).__name__).partition("\n")[0]
    if process.exitcode < 0:
        return signal.Signals(-process.exitcode).name
    return f"exit code {process.exitcode}"


def _work[A, T](tasks: Connection, begin: Callable[[int], Callable[[A], T]], number: int) -> None:
    """What such a process does, until nobody is there to ask."""
    import torch.multiprocessing  # noqa: F401 - has tensors sent in shared memory

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    work: Callable[[A], T] | None = None
    while True:
        try:
            task: A = tasks.recv()
            try:
                work = work or begin(number)
                answer: tuple[bool, Any] = True, work(task)
            except Exception as error:
                error.add_note(traceback.format_exc())  # the traceback itself can't be sent
                answer = False, error
            tasks.send(answer)
        except (EOFError, ConnectionError):
            # The parent is gone. What torch's libraries tear down at the end of a process does not always end well.
            os._exit(0)
