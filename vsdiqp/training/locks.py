"""Folders that one process at a time writes to."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from vsdiqp.errors import DiqpError


@contextlib.contextmanager
def held(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder for writing. Raises DiqpError, saying ``refusal``, when another holder does."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DiqpError(refusal) from error
        yield
