"""VMAF of a restored clip, where the FFmpeg inside PyAV was built with libvmaf."""

import gc
import json
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.video import Frame

_TICK = Fraction(1, 24)


def available() -> bool:
    """Whether VMAF can be measured here."""
    import av.filter

    return "libvmaf" in av.filter.filters_available


def vmaf(pairs: Iterable[tuple[Frame, Frame]]) -> float:
    """Mean VMAF (model vmaf_v0.6.1, 0..100) over pairs of (restored, source) frames, YUV 4:2:0 of 8 or 10 bits.

    Raises DiqpError where libvmaf is missing or no frame came.
    """
    if not available():
        raise DiqpError("this FFmpeg has no libvmaf; install the PyAV wheel (pip install av) or leave out --vmaf")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "vmaf.json"
        if not _feed(pairs, log):
            raise DiqpError("VMAF of a clip without frames was asked for")
        # libvmaf writes its log when the filter is freed, and PyAV's graph is part of a reference cycle.
        gc.collect()
        if not log.is_file():
            raise DiqpError("libvmaf wrote no scores")
        return float(json.loads(log.read_text())["pooled_metrics"]["vmaf"]["mean"])


def _feed(pairs: Iterable[tuple[Frame, Frame]], log: Path) -> int:
    """Sends all pairs through the filter; returns how many there were."""
    from av.filter import Graph

    # FFmpeg parses the path as a filter argument, where a colon would end it.
    path = str(log).replace("\\", "/").replace(":", "\\:")
    graph = Graph()
    inputs: list[Any] = []
    count = 0
    for pair in pairs:
        frames = [_to_av(frame, count) for frame in pair]
        if not inputs:
            inputs = [graph.add_buffer(template=frame, time_base=_TICK) for frame in frames]
            scorer = graph.add("libvmaf", f"log_fmt=json:log_path={path}:n_threads=1")
            sink = graph.add("buffersink")
            for i, node in enumerate(inputs):
                node.link_to(scorer, 0, i)
            scorer.link_to(sink)
            graph.configure()
        for node, frame in zip(inputs, frames, strict=True):
            node.push(frame)
        _drain(graph)
        count += 1
    for node in inputs:
        node.push(None)
    if inputs:
        _drain(graph)
    return count


def _drain(graph: Any) -> None:
    import av

    while True:
        try:
            graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _to_av(frame: Frame, index: int) -> Any:
    import av

    names = {8: "yuv420p", 10: "yuv420p10le"}
    bits = frame.format.bits_per_sample
    if bits not in names or frame.format.subsampling_w != 1 or frame.format.subsampling_h != 1:
        raise DiqpError(f"VMAF is measured on YUV 4:2:0 of 8 or 10 bits, not on {frame.format.name}")
    out = av.VideoFrame(frame.width, frame.height, names[bits])
    for i, target in enumerate(out.planes):
        samples = np.asarray(frame[i])
        rows = np.zeros((target.height, target.line_size // samples.itemsize), samples.dtype)
        rows[:, : samples.shape[1]] = samples
        target.update(rows)
    out.pts = index
    out.time_base = _TICK
    return out
