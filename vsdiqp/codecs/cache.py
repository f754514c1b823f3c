"""Scans kept in the user's cache folder, so that a file is read once.

An entry belongs to one path, size and modification time. Entries are written whole or not at all; one that is damaged
or of another version counts as missing.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vsdiqp.codecs.frames import CodedFrame, Scan

VERSION = 3
"""Raised whenever a scan of the same file would come out different."""


def cache_folder() -> Path:
    """Return the folder of the entries: ``vsdiqp/qp`` in the user's cache folder (``XDG_CACHE_HOME`` and its kin)."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(base)
    elif sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        folder = Path(local)
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    else:
        folder = Path.home() / ".cache"
    return folder / "vsdiqp" / "qp"


def load(path: Path, order: str) -> Scan | None:
    """Return the scan kept for ``path`` as it is on disk now; None when there is none that can be used.

    ``order`` is the :data:`vsdiqp.codecs.scan.Order` it was made with.
    """
    try:
        kept = json.loads(_entry(path, order).read_text(encoding="utf-8"))
        if kept["key"] != _key(path):
            return None
        fields: dict[str, Any] = kept["scan"]
        frames = [CodedFrame(int(qp), str(kind), bool(key)) for qp, kind, key in fields.pop("frames")]
        scan = Scan(frames=frames, **fields)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return None  # RuntimeError: there is no home, as in some containers
    return scan if len(scan.qps) == len(scan.frames) > 0 else None


def store(path: Path, order: str, scan: Scan) -> None:
    """Keep ``scan`` for ``path``; a cache folder that cannot be written to is no error."""
    fields = asdict(scan)
    fields["frames"] = [(frame.qp, frame.kind, frame.key) for frame in scan.frames]
    text = json.dumps({"key": _key(path), "scan": fields})
    with contextlib.suppress(OSError, RuntimeError):
        entry = _entry(path, order)
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=entry.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(partial, entry)
        except BaseException:
            os.unlink(partial)
            raise


def stamp(path: Path) -> tuple[int, int]:
    """Return the size in bytes and the modification time in nanoseconds of ``path``."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _key(path: Path) -> list[Any]:
    return [VERSION, str(path.resolve()), *stamp(path)]


def _entry(path: Path, order: str) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_folder() / f"{name}.{order}.json"
