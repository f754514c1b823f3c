"""The state that a stopped training run goes on from."""

import contextlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vsdiqp.errors import DiqpError

STATE = "state.pt"


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state whole or not at all. Raises DiqpError when it can't be written; the one before is kept then."""
    partial = folder / (STATE + ".partial")
    try:
        torch.save(dict(state), partial)
        partial.replace(folder / STATE)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError of a full disk
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = str(error).partition("\n")[0]
        raise DiqpError(
            f"the state can't be written to {folder} ({reason}); is there room? The run goes on from the state before "
            "it when it is started again"
        ) from error


def read_state(folder: Path, device: torch.device, keys: Sequence[str]) -> dict[str, Any] | None:
    """The state in a folder; None if there is none. Raises DiqpError if it can't be read, or lacks one of ``keys``."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DiqpError(f"{path} can't be read ({reason}); put a copy back, or remove it to start over") from None
    if not isinstance(state, dict) or not set(keys) <= set(state):
        raise DiqpError(f"{path} is no state of a training run of vsdiqp; give another --out, or remove it")
    return state


def load_optimisers(optimisers: Sequence[torch.optim.Optimizer], saved: Sequence[dict[str, Any]]) -> None:
    """Moments as saved, settings (betas, weight decay) as they are now. Raises DiqpError if there were other ones."""
    if len(optimisers) != len(saved):
        raise _another()
    for optimiser, one in zip(optimisers, saved, strict=True):
        groups = optimiser.param_groups
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        try:
            optimiser.load_state_dict(one)
        except (ValueError, KeyError, IndexError) as error:
            raise _another() from error
        for group, now in zip(optimiser.param_groups, settings, strict=True):
            group.update(now)


def _another() -> DiqpError:
    return DiqpError(
        "the state was made with another optimiser; go on with that one, or start another --out from this run's "
        "last.safetensors (--initial)"
    )
