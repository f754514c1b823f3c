"""Places that results go to, checked before the work, so that none is lost at its end."""

import os
from pathlib import Path

from vsdiqp.errors import DiqpError


def make_folder(folder: str | Path) -> None:
    """Make a folder for results unless there is one. Raises OSError or DiqpError where nothing can be written."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DiqpError(f"nothing can be written into {folder}; give another folder")


def check_file(path: str | Path) -> None:
    """Make the folder of a file to be written. Raises OSError or DiqpError where it cannot be."""
    path = Path(path)
    if path.is_dir():
        raise DiqpError(f"{path} is a folder; give a file to write")
    if path.exists() and not os.access(path, os.W_OK):
        raise DiqpError(f"{path} cannot be written; give another file")
    make_folder(path.parent)
