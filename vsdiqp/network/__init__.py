"""DiQP: the network, its parts, and its checkpoints. Nothing here knows frames or clips; the sizes are numbers."""

from vsdiqp.network.checkpoint import (
    load_checkpoint,
    model_hash,
    read_config,
    read_first_pass,
    read_metadata,
    save_checkpoint,
    shipped,
)
from vsdiqp.network.config import DiQPConfig
from vsdiqp.network.diqp import DiQP

__all__ = [
    "DiQP",
    "DiQPConfig",
    "load_checkpoint",
    "model_hash",
    "read_config",
    "read_first_pass",
    "read_metadata",
    "save_checkpoint",
    "shipped",
]
