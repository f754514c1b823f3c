"""The quantiser scales of codecs, and the QP of every frame of a file, read from its bitstream.

Importing the package is cheap: what reads files (PyAV) is imported on first use.
"""

from typing import TYPE_CHECKING, Any

from vsdiqp.codecs.frames import CodedFrame, Scan
from vsdiqp.codecs.scales import CODECS, QpScale, check_qp

if TYPE_CHECKING:
    from vsdiqp.codecs.reading import frame_qps, probe, read_qps

__all__ = ["CODECS", "CodedFrame", "QpScale", "Scan", "check_qp", "frame_qps", "probe", "read_qps"]


def __getattr__(name: str) -> Any:
    if name in ("frame_qps", "probe", "read_qps"):
        from vsdiqp.codecs import reading

        return getattr(reading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
