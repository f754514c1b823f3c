"""Long work says on stderr how far it is; short work says nothing."""

import io
import sys

import pytest

from vsdiqp import progress
from vsdiqp.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine() as line:
        for done in range(0, 61):
            clock[0] += 1
            line(done, 60, "clip")
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert not shown.out and 6 <= len(lines) <= 8
    assert lines[0] == "[0/60] starting  clip" and lines[-1] == "[60/60] took 0:01:01  clip"
    assert "[30/60] 0:00:31 left  clip" in lines


def test_what_was_there_before_does_not_hasten_the_rest(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    line(900, 1000)
    clock[0] += 20
    line(910, 1000)
    assert capsys.readouterr().err.splitlines()[-1] == "[910/1000] 0:03:00 left"


def test_a_terminal_gets_one_line_that_is_ended(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressLine() as line:
        line(1, 2, "clip")
        clock[0] += 1
        line(2, 2, "clip")
    assert terminal.getvalue().count("\r") == 2 and terminal.getvalue().count("\n") == 1


def test_short_work_is_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(patience=2.0) as line:
        for done in range(11):
            clock[0] += 0.1
            line(done, 10, "file")
    assert not capsys.readouterr().err


def test_programs_without_a_console_are_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with ProgressLine() as line:
        line(1, 2, "clip")
