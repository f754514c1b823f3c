"""The quantiser scales of codecs, and the QP of every frame of a file, read from its bitstream."""

from vsdiqp.codecs.scales import CODECS, QpScale, check_qp

__all__ = ["CODECS", "QpScale", "check_qp"]
