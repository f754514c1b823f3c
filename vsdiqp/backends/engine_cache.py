"""Compiled engines kept in the user's cache folder: whole or not at all, keyed by everything that matters.

An engine file is a line of JSON (the key, the payload's length and SHA-256) and the payload. It is written under a
temporary name and renamed; builders of one engine in several processes wait for each other; one that is damaged, or was
made for another version of anything, is built again with one line in the log. Where no engine can be built the file
says why instead: to find that out takes minutes, too. A folder that can't be written to costs a line in the log, not
the engine.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from vsdiqp.codecs.cache import cache_folder
from vsdiqp.errors import BackendError

_log = logging.getLogger("vsdiqp")

FORMAT: Final = "vsdiqp-engine-2"
SUFFIX: Final = ".engine"
_LONGEST_REASON: Final = 2000
"""Characters; the line with it is read up to 64 KiB."""
_LEFT_BEHIND: Final = 600
"""Seconds after which a file is no longer being written: engines take far less."""


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
        """What the user asked for, on which GPU: of one network, engines of one place replace each other when versions
        change."""
        words = (self.model, f"{self.tile[0]}x{self.tile[1]}", f"b{self.batch}", self.precision, self.gpu)
        return "-".join("".join(c if c.isalnum() or c == "." else "_" for c in word) for word in words)

    def differences(self, other: "EngineKey") -> list[str]:
        """What another key has otherwise, as "name old -> new"."""
        old, new = asdict(other), asdict(self)
        return [f"{name} {_brief(old[name])} -> {_brief(new[name])}" for name in new if old[name] != new[name]]


@dataclass(frozen=True, slots=True)
class Entry:
    """An engine file; ``key`` None when it is damaged, ``refused`` why there is no engine where none could be built."""

    path: Path
    key: EngineKey | None
    size: int
    refused: str = ""


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

    def get(self, key: EngineKey, build: Callable[[], bytes], again: bool = False) -> bytes:
        """The engine of a key, built if there is none that can be used; ``again``: even if that was in vain before.

        Raises what ``build`` raises. That it raised BackendError is kept, and raised the next time without building.
        """
        path = self.path(key)
        with self._lock(key):
            reason = "is not there yet"
            if path.exists():
                found = _read(path)
                if isinstance(found, _Content) and found.key == key:
                    if not found.refused:
                        return found.payload
                    if not again:
                        raise BackendError(
                            f"{found.refused} (found out earlier; 'vsdiqp engine clear' has it tried again)"
                        )
                    reason = "could not be built"
                else:
                    reason = found if isinstance(found, str) else "belongs to something else"
            stale = [entry for entry in self.entries() if entry.path != path and _replaced(entry, key)]
            for entry in stale:
                changed = ", ".join(key.differences(entry.key)) if entry.key else "it is damaged"
                reason = f"is stale ({changed})"
            _log.info("engine %s %s: building it", path.name, reason)
            try:
                payload = build()
            except BackendError as error:
                self.put(key, b"", str(error))
                raise
            if self.put(key, payload):
                for entry in stale:
                    entry.path.unlink(missing_ok=True)
            return payload

    def drop(self, key: EngineKey) -> None:
        """Remove the engine of a key, which turned out to be of no use."""
        with contextlib.suppress(OSError):
            self.path(key).unlink(missing_ok=True)

    def put(self, key: EngineKey, payload: bytes, refused: str = "") -> bool:
        """Keep an engine, or why there is none: whether that worked. If not, the log says so."""
        try:
            _write(self.path(key), key, payload, refused)
        except OSError as error:
            _log.warning("the engine can't be kept, and will be built again the next time: %s", error)
            return False
        return True

    @contextlib.contextmanager
    def _lock(self, key: EngineKey) -> Iterator[None]:
        """Hold a key's lock. Where there can be none two processes may build the same engine, which only takes time."""
        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(_lock(self.folder / f"{key.place}.lock"))
            except OSError as error:
                _log.debug("no lock on engines: %s", error)
            yield

    def has(self, key: EngineKey) -> bool:
        """Whether a whole engine of this key is there."""
        found = _read(self.path(key))
        return isinstance(found, _Content) and found.key == key and not found.refused

    def entries(self) -> list[Entry]:
        """All engines, by name."""
        found = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            read = _read(path)
            size = path.stat().st_size if path.exists() else 0
            found.append(
                Entry(path, None, size) if isinstance(read, str) else Entry(path, read.key, size, read.refused)
            )
        return found

    def clear(self) -> tuple[int, int]:
        """Remove all engines; returns how many, and their bytes. Those that are being built stay."""
        entries = self.entries()
        for entry in entries:
            entry.path.unlink(missing_ok=True)
        # Locks stay: who removes one that is held lets the next builder in beside the one at work.
        for leftover in self.folder.glob("*.partial"):
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > _LEFT_BEHIND:
                    leftover.unlink()
        return len(entries), sum(entry.size for entry in entries)


def _replaced(entry: Entry, key: EngineKey) -> bool:
    """Whether nobody wants an engine when there is that of ``key``: the same network's, for other versions."""
    if entry.key is None:
        return entry.path.name.startswith(f"{key.place}-")
    old = entry.key
    return (old.place, old.weights, old.config) == (key.place, key.weights, key.config)


def _brief(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


@dataclass(frozen=True, slots=True)
class _Content:
    key: EngineKey
    payload: bytes
    refused: str


def _read(path: Path) -> _Content | str:
    """What is in a file, or what is wrong with it."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(1 << 16))
            payload = file.read()
        if header["format"] != FORMAT:
            return f"has format {header['format']!r}"
        key = EngineKey(**{**header["key"], "tile": tuple(header["key"]["tile"])})
        if len(payload) != header["size"] or hashlib.sha256(payload).hexdigest() != header["sha256"]:
            return "is damaged"
        return _Content(key, payload, str(header["refused"]))
    except (OSError, ValueError, KeyError, TypeError):
        return "is damaged"


def _write(path: Path, key: EngineKey, payload: bytes, refused: str) -> None:
    """Write and rename, so that nobody ever sees half a file, not even after a power cut."""
    header = {
        "format": FORMAT,
        "key": asdict(key),
        "refused": refused[:_LONGEST_REASON],
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
