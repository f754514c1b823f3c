"""The compiled parts that Python calls itself: where they lie, and their functions' types."""

import ctypes
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vsdiqp.errors import DiqpError

Signatures = Mapping[str, tuple[Any, Sequence[Any]]]
"""Result (None for void) and arguments of functions, as ctypes names types."""


def open_library(folder: str, name: str, signatures: Signatures) -> ctypes.CDLL:
    """Open the library ``name`` of the package's ``folder``. Raises DiqpError where it is missing."""
    path = find_library(folder, name)
    if path is None:
        raise DiqpError(
            f"{name}, a compiled part of vsdiqp, is missing: install it again with pip install . in its clone, or, to "
            "work in the source tree, run scripts/build_plugin"
        )
    library = ctypes.CDLL(str(path))
    for function_name, (result, arguments) in signatures.items():
        function = getattr(library, function_name)
        function.restype, function.argtypes = result, list(arguments)
    return library


def find_library(folder: str, name: str) -> Path | None:
    """In this package; else, where Python runs from a source tree that was installed, in the installed package."""
    places = [Path(__file__).parent, *(Path(entry, "vsdiqp") for entry in sys.path)]
    return next((path for place in places if (path := place / folder / name).is_file()), None)
