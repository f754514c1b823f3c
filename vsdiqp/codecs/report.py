"""What a scan says, for people and for other programs: statistics, CSV, x265's qpfile, a plot."""

import csv
from pathlib import Path
from statistics import fmean
from typing import Any

from vsdiqp.codecs.frames import CodedFrame, Scan
from vsdiqp.codecs.scales import CODECS
from vsdiqp.errors import DiqpError
from vsdiqp.labels import plotted

_COLOURS = {"I": "tab:red", "P": "tab:blue", "B": "tab:green", "b": "tab:gray"}


def statistics(scan: Scan) -> dict[str, dict[str, float]]:
    """Return frames, min, mean and max of the QP (on ``scan.codec``'s scale), for all frames and by frame type."""
    by_kind: dict[str, list[int]] = {"all": scan.qps}
    for kind in _COLOURS:
        qps = [qp for frame, qp in zip(scan.frames, scan.qps, strict=True) if frame.kind == kind]
        if qps:
            by_kind[kind] = qps
    return {
        kind: {"frames": len(qps), "min": min(qps), "mean": round(fmean(qps), 2), "max": max(qps)}
        for kind, qps in by_kind.items()
    }


def summary(path: Path, scan: Scan) -> dict[str, Any]:
    """Return everything but the frames, ready for JSON."""
    return {
        "file": str(path),
        "stream_codec": scan.stream_codec,
        "profile": scan.profile,
        "bits": scan.bits,
        "width": scan.width,
        "height": scan.height,
        "frames": len(scan.frames),
        "unreadable_packets": scan.unreadable,
        "encoder": scan.encoder,
        "codec": scan.codec,
        "qp": statistics(scan),
        "qp_offset": scan.qp_offset,
    }


def text(path: Path, scan: Scan) -> str:
    """Return the summary as lines for a terminal."""
    scale = CODECS[scan.codec]
    mapped = "" if scan.stream_codec == scan.codec else f", from the mean over the blocks of {scan.stream_codec}"
    lines = [
        str(path),
        f"  codec       {' '.join(filter(None, (scan.stream_codec, scan.profile)))}, {scan.bits} bit",
        f"  size        {scan.width}x{scan.height}, {len(scan.frames)} frames",
        f"  encoder     {scan.encoder or 'not said in the stream'}",
        f"  QP scale    {scale.title}, {scale.low} to {scale.high}{mapped}",
        "  type   frames   min    mean   max",
    ]
    lines += [
        f"  {kind:<6}{values['frames']:>7}{values['min']:>6}{values['mean']:>8.2f}{values['max']:>6}"
        for kind, values in statistics(scan).items()
    ]
    if scan.qp_offset:
        why = "x265's cutree" if scan.stream_codec == "hevc" else scan.stream_codec
        lines.append(f"  Restore adds {scan.qp_offset:+d} to these after ReadQP ({why}: see docs/qp.md)")
    if scan.unreadable:
        lines.append(f"  {scan.unreadable} packets could not be read to their end: the file is damaged")
    return "\n".join(lines)


def write_csv(path: Path, scan: Scan) -> None:
    """Write a line for every frame: its number, type, whether it is a key frame, the stream's quantiser, the QP."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("frame", "type", "key", "stream_qp", "qp"))
        for number, (frame, qp) in enumerate(zip(scan.frames, scan.qps, strict=True)):
            writer.writerow((number, frame.kind, int(frame.key), frame.qp, qp))


def write_qpfile(path: Path, scan: Scan) -> None:
    """Write ``number type QP`` for every frame, which makes ``x265 --qpfile`` use the same types and QPs.

    Raises :class:`DiqpError` for QPs that are not on HEVC's scale.
    """
    if scan.codec != "hevc":
        raise DiqpError(f"a qpfile holds HEVC QPs 0 to 51, and this stream's are on the scale of {scan.codec}")
    lines = (
        f"{number} {_qpfile_type(frame)} {qp}\n"
        for number, (frame, qp) in enumerate(zip(scan.frames, scan.qps, strict=True))
    )
    path.write_text("".join(lines), encoding="ascii")


def _qpfile_type(frame: CodedFrame) -> str:
    if frame.kind != "I":
        return frame.kind
    return "K" if frame.key else "i"


def write_plot(path: Path, scan: Scan, title: str) -> None:
    """Draw the QP of every frame over time, coloured by frame type, into a PNG file. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(scan.qps, color="0.85", linewidth=0.8, zorder=1)
    for kind, colour in _COLOURS.items():
        numbers = [number for number, frame in enumerate(scan.frames) if frame.kind == kind]
        if numbers:
            label = f"{kind} ({len(numbers)})"
            axes.scatter(numbers, [scan.qps[number] for number in numbers], s=6, color=colour, label=label, zorder=2)
    axes.set_xlabel("frame")
    axes.set_ylabel(CODECS[scan.codec].title)
    axes.set_title(plotted(title))
    axes.margins(x=0.01)
    axes.grid(axis="y", color="0.92")
    axes.legend(loc="upper right", title="type (frames)")
    figure.savefig(path, format="png")
