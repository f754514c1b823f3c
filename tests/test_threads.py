"""The engine's own threads: work in order, and nothing that happens meanwhile locks them up."""

import contextlib
import io
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from vsdiqp import threads
from vsdiqp.errors import DiqpError
from vsdiqp.threads import EngineThreads


def finishes(work: Callable[[], Any]) -> bool:
    """Whether ``work`` returns; it runs on a thread that may hang."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()


class Interrupted:
    """A lock in whose care the garbage collector frees something, once."""

    def __init__(self, lock: Any, freed: Callable[[], Any]) -> None:
        self._lock, self._freed = lock, freed

    def __enter__(self) -> None:
        self._lock.acquire()
        freed, self._freed = self._freed, lambda: None
        freed()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("freeing", ["a filter of the same thread", "a filter with threads of its own"])
def test_a_filter_may_be_freed_while_work_is_handed_over(freeing: str) -> None:
    """The collector runs wherever something is allocated, in the middle of `submit` too, and closing submits work."""
    pool, other = EngineThreads(1, "test"), EngineThreads(1, "other")
    done: list[str] = []

    def freed() -> None:
        pool.submit(lambda: done.append("closed"))
        if freeing != "a filter of the same thread":
            other.stop()

    pool._lock = Interrupted(pool._lock, freed)  # type: ignore[assignment]
    try:
        assert finishes(lambda: pool.run(lambda: done.append("work")))
        assert sorted(done) == ["closed", "work"]
    finally:
        pool.stop()
        other.stop()


def test_a_filter_may_be_freed_while_the_shared_thread_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = threads.shared_thread()
    found: list[EngineThreads] = []
    lock = Interrupted(threads._shared_lock, lambda: found.append(threads.shared_thread()))
    monkeypatch.setattr(threads, "_shared_lock", lock)
    assert finishes(lambda: found.append(threads.shared_thread()))
    assert found == [shared, shared]


def test_work_is_done_in_order_and_errors_reach_who_waits() -> None:
    pool = EngineThreads(1, "test")
    done: list[int] = []
    waiting = [pool.submit(lambda n=n: done.append(n)) for n in range(50)]
    for future in waiting:
        future.result(20)
    assert done == list(range(50))
    with pytest.raises(ZeroDivisionError):
        pool.run(lambda: 1 / 0)
    pool.stop()
    with pytest.raises(DiqpError, match="shutting down"):
        pool.submit(lambda: None)


def test_who_has_borrowed_stdout_may_still_use_it() -> None:
    """print() does so before Python 3.14: it may find the stand-in, and write to it when the work is long done."""
    pool = EngineThreads(1, "test")
    try:
        borrowed = {pool.run(lambda: weakref.ref(sys.stdout)) for _ in range(20)}
    finally:
        pool.stop()
    assert not isinstance(sys.stdout, threads._Stdout)
    assert len(borrowed) == 1, "always the same, or there would be no end to keeping them"
    assert all(stand_in() is not None for stand_in in borrowed)


def test_what_stands_in_is_that_of_whom_stdout_is(capsys: pytest.CaptureFixture[str]) -> None:
    pool = EngineThreads(1, "test")
    try:
        for name in ("first", "second"):
            with contextlib.redirect_stdout(io.StringIO()) as redirected:
                pool.run(lambda: print("engine"))
                print(name)
            assert redirected.getvalue() == f"{name}\n"
    finally:
        pool.stop()
    assert capsys.readouterr().err == "engine\n" * 2
