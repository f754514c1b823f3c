"""The CUDA C sources, each as one text: what is included is put in, so that NVRTC needs no include path, and caches of
compiled kernels, which know a text only, see changes of it.
"""

import re
from functools import cache
from pathlib import Path
from typing import Final

import vsdiqp.alignment

PLANES: Final = "planes.cu"
"""The pixel side of a group."""
ALIGNMENT: Final = "alignment.cu"
"""The neighbours of a group's frames, for networks that see them."""
DEPTHWISE: Final = "depthwise.cu"
"""The depthwise step of a block."""

_FOLDERS: Final = (Path(__file__).parent, Path(vsdiqp.alignment.__file__).parent)
_INCLUDE: Final = re.compile(r'#include "(.+)"')


@cache
def text(name: str) -> str:
    """A source with its includes put in, each once; those that are not part of the package stay as they are."""
    return "\n".join(_lines(_find(name), set())) + "\n"


def _find(name: str) -> Path | None:
    return next((folder / name for folder in _FOLDERS if (folder / name).is_file()), None)


def _lines(path: Path | None, seen: set[Path]) -> list[str]:
    if path is None:
        raise FileNotFoundError("a CUDA source is missing from the package")
    seen.add(path)
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        include = _INCLUDE.fullmatch(line.strip())
        inner = _find(include[1]) if include else None
        if line.strip() == "#pragma once":
            lines.append("")  # compilers warn of it in a main file
        elif inner is None:
            lines.append(line)
        else:
            if inner not in seen:
                lines.extend(_lines(inner, seen))
            lines.append(f'#line {number + 1} "{path.name}"')
    return lines
