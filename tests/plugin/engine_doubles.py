"""Restorers that stand in for the real one, so that what the plugin asks of it can be seen without a network."""

import gc
import json
import os
import sys
import threading
import time
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vsdiqp.clip import ClipFormat, Planes, Run, Settings
from vsdiqp.errors import DiqpError

NEIGHBOURS = "STANDIN_NEIGHBOURS"
"""Environment variable: how many neighbours on each side the doubles ask for; without it they say nothing of it."""


def number_of(planes: Planes) -> int:
    """The frame number that ``plugin_support.numbered`` writes into every sample of the first plane."""
    return int(planes[0][0, 0])


class Recorder:
    """Adds one to every sample of the first plane, copies the others, and records each run."""

    runs: ClassVar[list[dict[str, Any]]] = []
    made: ClassVar[list["Recorder"]] = []
    threads: ClassVar[set[str]] = set()

    def __init__(self, settings: Settings, clip: ClipFormat) -> None:
        self.settings = settings
        self.clip = clip
        self.look_ahead = 0 if settings.look_ahead is None else settings.look_ahead
        # Only where it is asked for: a restorer need not have the attribute.
        if NEIGHBOURS in os.environ:
            self.neighbours = int(os.environ[NEIGHBOURS])
        self.closed = threading.Event()
        Recorder.made.append(self)

    @classmethod
    def reset(cls) -> None:
        cls.runs.clear()
        cls.made.clear()
        cls.threads.clear()

    def restore(self, run: Run) -> None:
        Recorder.threads.add(threading.current_thread().name)
        Recorder.runs.append(
            {
                "frames": [number_of(planes) for planes in run.frames],
                "ahead": number_of(run.ahead),
                "targets": [target is not None for target in run.targets],
                "colour": run.colour,
                "qp": run.qp,
                "codec": run.codec,
                "middle": run.middle,
                "before": [number_of(planes) for planes in run.before],
                "after": [number_of(planes) for planes in run.after],
            }
        )
        for source, target in zip(run.frames, run.targets, strict=True):
            if target is not None:
                for old, new in zip(source, target, strict=True):
                    np.copyto(new, old)
                target[0][...] += 1

    def close(self) -> None:
        self.closed.set()


class Mixer(Recorder):
    """Makes each result depend on every frame of the run, so that a wrong one anywhere changes pixels."""

    def restore(self, run: Run) -> None:
        given = (*run.frames, run.ahead, *run.before, *run.after)
        total = sum((3**i) * planes[0].astype(np.int64) for i, planes in enumerate(given))
        for i, (source, target) in enumerate(zip(run.frames, run.targets, strict=True)):
            if target is not None:
                target[0][...] = (7 * source[0] + 5 * total + i + run.middle) % 251
                for old, new in zip(source[1:], target[1:], strict=True):
                    np.copyto(new, old)


class TwoPasses(Recorder):
    """Has model "first" restore frames beforehand, which adds one to them."""

    def __init__(self, settings: Settings, clip: ClipFormat) -> None:
        super().__init__(settings, clip)
        self.first_pass = "" if settings.model == "first" else "first"

    def restore(self, run: Run) -> None:
        super().restore(run)
        Recorder.runs[-1].update(model=self.settings.model, first=[number_of(planes) for planes in run.first])


class FirstFails(TwoPasses):
    """As before, but the first pass cannot restore frame 7."""

    def restore(self, run: Run) -> None:
        if self.first_pass == "" and 7 in [number_of(planes) for planes in run.frames]:
            raise DiqpError("out of luck")
        super().restore(run)


class Slow(Recorder):
    """Takes its time and uses two threads at once."""

    concurrency = 2

    def restore(self, run: Run) -> None:
        time.sleep(0.02)
        super().restore(run)


class Waits(Recorder):
    """Says when a run has started, and ends none before it may."""

    started: ClassVar[threading.Event] = threading.Event()
    go: ClassVar[threading.Event] = threading.Event()

    def restore(self, run: Run) -> None:
        Waits.started.set()
        Waits.go.wait(10)
        super().restore(run)


class Fails(Recorder):
    """Fails on the runs whose middle frame is in ``bad``, with the error given there."""

    bad: ClassVar[dict[int, BaseException]] = {}

    def restore(self, run: Run) -> None:
        super().restore(run)
        if run.middle in Fails.bad:
            raise Fails.bad[run.middle]


class Refuses:
    """Cannot be made."""

    def __init__(self, settings: Settings, clip: ClipFormat) -> None:
        raise DiqpError(f"no model {settings.model!r}: give another one")


class Prints(Recorder):
    """Prints to stdout, as libraries do."""

    def restore(self, run: Run) -> None:
        print("a word from the engine")
        sys.stdout.write("another\n")
        super().restore(run)


class Sleeps(Recorder):
    """Works long enough to be interrupted by the end of the program."""

    def restore(self, run: Run) -> None:
        time.sleep(float(os.environ.get("STANDIN_SLEEP", "0.05")))
        super().restore(run)


class Logs(Recorder):
    """Appends each run to the file that STANDIN_LOG names: for tests that run in other processes."""

    def restore(self, run: Run) -> None:
        super().restore(run)
        with open(os.environ["STANDIN_LOG"], "a", encoding="utf-8") as log:
            log.write(json.dumps({key: value for key, value in Recorder.runs[-1].items() if key != "colour"}) + "\n")


class Overwrites(Recorder):
    """Tries to write to the source frames."""

    refused: ClassVar[int] = 0

    def restore(self, run: Run) -> None:
        super().restore(run)
        for planes in (*run.before, *run.frames, run.ahead, *run.after):
            try:
                planes[0][...] = 99
            except ValueError:
                Overwrites.refused += 1


class Keeps(Recorder):
    """Keeps what it is given around each group: the samples of all planes, and where the first plane lies."""

    seen: ClassVar[list[list[list[NDArray[Any]]]]] = []
    addresses: ClassVar[list[list[int]]] = []

    def restore(self, run: Run) -> None:
        super().restore(run)
        frames = (*run.before, *run.frames, *run.after)
        Keeps.seen.append([[plane.copy() for plane in planes] for planes in frames])
        Keeps.addresses.append([planes[0].ctypes.data for planes in frames])


class OnlyHevc(Recorder):
    """Is made for one codec."""

    codecs = ("hevc",)


class OnlyAv1(Recorder):
    """Is made for the other one."""

    codecs = ("av1",)


class Collects(Recorder):
    """Runs the garbage collector, as any allocation may."""

    def restore(self, run: Run) -> None:
        gc.collect()
        super().restore(run)
