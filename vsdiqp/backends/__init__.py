"""How a network runs: one module a backend, found by name and imported only when asked for."""

import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final, cast

from vsdiqp.backends.base import Backend, Task
from vsdiqp.errors import BackendError, DiqpError

MODULES: Final = {
    "tensorrt": "vsdiqp.backends.tensorrt",
    "cuda": "vsdiqp.backends.cuda",
    "cpu": "vsdiqp.backends.cpu",
}
"""Every backend, fastest first: the order in which "auto" tries them."""

GPUS: Final = Path("/proc/driver/nvidia/gpus")
"""A folder where Linux has an NVIDIA GPU and its driver, whatever Python's packages can do."""

_log = logging.getLogger("vsdiqp")


def unavailable(name: str) -> str | None:
    """Why the backend can't run here; None when it can. A broken dependency is a reason, never an exception."""
    module = _load(name)
    return module if isinstance(module, str) else cast("str | None", module.unavailable())


def available() -> list[str]:
    """Names of the backends that can run on this machine, fastest first."""
    return [name for name in MODULES if unavailable(name) is None]


def candidates(name: str) -> list[str]:
    """The backends that a name means here: itself, or for "auto" all that can run, fastest first.

    Raises DiqpError when there is no such backend or it can't run here.
    """
    if name != "auto":
        if name not in MODULES:
            raise DiqpError(f"backend is {name!r}; it may be 'auto' or one of {', '.join(sorted(MODULES))}")
        reason = unavailable(name)
        if reason is not None:
            raise DiqpError(f"backend {name!r} can't run here: {reason}; backend='auto' takes the best that can")
        return [name]
    reasons = {candidate: unavailable(candidate) for candidate in MODULES}
    found = [candidate for candidate, reason in reasons.items() if reason is None]
    missing = [f"{candidate}: {reason}" for candidate, reason in reasons.items() if reason is not None]
    if not found:
        raise DiqpError("no backend can run here: " + "; ".join(missing))
    # Whoever has a GPU wants to know why it idles; for everybody else the choice is no news.
    level = logging.WARNING if found[0] == "cpu" and GPUS.is_dir() else logging.INFO
    _log.log(level, "backend %s%s", found[0], "".join(f"; not {reason}" for reason in missing))
    return found


def free_tiles(name: str) -> bool:
    """Whether the backend runs tiles of any allowed size equally well, so that they may be fitted to the frame.

    A module says so with ``FREE_TILES = True``; others build something for one size and want the network's own.
    """
    return bool(getattr(_load(name), "FREE_TILES", False))


def open_backend(names: Sequence[str], make_task: Callable[[str], Task]) -> tuple[Backend, Task]:
    """Open the first of `candidates`' backends that opens, with the task made for it.

    What a backend can't do on this machine after all (`BackendError`) is logged in one line, and the next one is
    tried; every other DiqpError, and the last one's, is raised.
    """
    for name, following in zip(names, [*names[1:], None], strict=True):
        task = make_task(name)
        try:
            return cast(Backend, import_module(MODULES[name]).open_backend(task)), task
        except BackendError as error:
            if following is None:
                raise
            _log.warning("backend %s can't be used: %s; taking %s", name, error, following)
    raise DiqpError("no backend was given")


def _load(name: str) -> ModuleType | str:
    try:
        return import_module(MODULES[name])
    except Exception as error:  # a half-installed GPU stack fails in many ways, none of which concerns the others
        return f"it can't be imported ({type(error).__name__}: {error})"
