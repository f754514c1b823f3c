"""Compiled engines kept in the user's cache folder: whole or not at all, keyed by everything that matters.

An engine file is a line of JSON (the key, the payload's length and SHA-256) and the payload. It is written under a
temporary name and renamed; builders of one engine in several processes wait for each other; one that is damaged, or was
made for another version of anything, is built again with one line in the log.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from vsdiqp.codecs.cache import cache_folder

_log = logging.getLogger("vsdiqp")

FORMAT: Final = "vsdiqp-engine-1"
SUFFIX: Final = ".engine"


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything an engine depends on; the engine of another key is another engine."""

    model: str
    weights: str
    """SHA-256 of names, shapes and values of all parameters."""
    config: str
    """SHA-256 of the network's configuration."""
    tile: tuple[int, int]
    """Width, height."""
    batch: int
    """Largest batch."""
    precision: str
    gpu: str
    capability: str
    driver: str
    tensorrt: str
    torch_tensorrt: str
    torch: str
    vsdiqp: str

    def digest(self) -> str:
        """A name for this key."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def place(self) -> str:
        """What the user asked for, on which GPU: engines of one place replace each other when versions change."""
        words = (self.model, f"{self.tile[0]}x{self.tile[1]}", f"b{self.batch}", self.precision, self.gpu)
        return "-".join("".join(c if c.isalnum() or c == "." else "_" for c in word) for word in words)

    def differences(self, other: "EngineKey") -> list[str]:
        """What another key has otherwise, as "name old -> new"."""
        old, new = asdict(other), asdict(self)
        return [f"{name} {_brief(old[name])} -> {_brief(new[name])}" for name in new if old[name] != new[name]]


@dataclass(frozen=True, slots=True)
class Entry:
    """An engine file; ``key`` None when it is damaged."""

    path: Path
    key: EngineKey | None
    size: int


def engine_folder() -> Path:
    """Where engines are kept: ``vsdiqp/engines`` in the user's cache folder."""
    return cache_folder().with_name("engines")


class EngineCache:
    """The engines in a folder, which is made when first written to."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = engine_folder() if folder is None else folder

    def path(self, key: EngineKey) -> Path:
        """The file of a key."""
        return self.folder / f"{key.place}-{key.digest()[:16]}{SUFFIX}"

    def get(self, key: EngineKey, build: Callable[[], bytes]) -> bytes:
        """The engine of a key, built if there is none that can be used. Raises what ``build`` raises, or OSError."""
        path = self.path(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self.folder / f"{key.place}.lock"):
            reason = "is not there yet"
            if path.exists():
                found = _read(path)
                if isinstance(found, tuple) and found[0] == key:
                    return found[1]
                reason = found if isinstance(found, str) else "belongs to something else"
            stale = [entry for entry in self.entries() if entry.path != path and _same_place(entry, key)]
            for entry in stale:
                changed = ", ".join(key.differences(entry.key)) if entry.key else "it is damaged"
                reason = f"is stale ({changed})"
            _log.info("engine %s %s: building it", path.name, reason)
            payload = build()
            _write(path, key, payload)
            for entry in stale:
                entry.path.unlink(missing_ok=True)
            return payload

    def has(self, key: EngineKey) -> bool:
        """Whether a whole engine of this key is there."""
        found = _read(self.path(key))
        return isinstance(found, tuple) and found[0] == key

    def entries(self) -> list[Entry]:
        """All engines, by name."""
        found = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            read = _read(path)
            size = path.stat().st_size if path.exists() else 0
            found.append(Entry(path, None if isinstance(read, str) else read[0], size))
        return found

    def clear(self) -> tuple[int, int]:
        """Remove all engines; returns how many, and their bytes."""
        entries = self.entries()
        for entry in entries:
            entry.path.unlink(missing_ok=True)
        for leftover in (*self.folder.glob("*.lock"), *self.folder.glob("*.partial")):
            leftover.unlink(missing_ok=True)
        return len(entries), sum(entry.size for entry in entries)


def _same_place(entry: Entry, key: EngineKey) -> bool:
    if entry.key is not None:
        return entry.key.place == key.place
    return entry.path.name.startswith(f"{key.place}-")


def _brief(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _read(path: Path) -> tuple[EngineKey, bytes] | str:
    """Key and payload, or what is wrong with the file."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(1 << 16))
            payload = file.read()
        if header["format"] != FORMAT:
            return f"has format {header['format']!r}"
        key = EngineKey(**{**header["key"], "tile": tuple(header["key"]["tile"])})
        if len(payload) != header["size"] or hashlib.sha256(payload).hexdigest() != header["sha256"]:
            return "is damaged"
    except (OSError, ValueError, KeyError, TypeError):
        return "is damaged"
    return key, payload


def _write(path: Path, key: EngineKey, payload: bytes) -> None:
    """Write and rename, so that nobody ever sees half a file, not even after a power cut."""
    header = {
        "format": FORMAT,
        "key": asdict(key),
        "size": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock against other processes and threads; the system lets go of it when a process dies."""
    with path.open("a+b") as file:
        try:
            import fcntl
        except ImportError:  # Windows: renaming keeps files whole there too, two builders only waste time
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _log.info("another process is building an engine; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
