"""vsdiqp: DiQP, a QP-aware transformer against HEVC and AV1 compression damage, as a VapourSynth filter."""

__version__ = "0.1.0"
