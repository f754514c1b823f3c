"""Results as JSON, as Markdown tables and as plots."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vsdiqp import __version__
from vsdiqp.evaluation.evaluate import Point, Result, Settings
from vsdiqp.evaluation.metrics import ClipScores, mean_known
from vsdiqp.labels import plotted

BASELINE = "input"

Measure = Callable[[ClipScores], float | None]

_MEASURES: dict[str, tuple[Measure, str]] = {
    "Y PSNR": (lambda s: s.y_psnr, "+.3f"),
    "Y SSIM": (lambda s: s.y_ssim, "+.5f"),
    "RGB PSNR": (lambda s: s.rgb_psnr, "+.3f"),
    "RGB SSIM": (lambda s: s.rgb_ssim, "+.5f"),
    "chroma PSNR": (lambda s: s.c_psnr, "+.3f"),
    "SD": (lambda s: s.sd, "+.3f"),
    "PVD": (lambda s: s.pvd, "+.3f"),
    "VMAF": (lambda s: s.vmaf, "+.2f"),
}


class Table:
    """All results of one evaluation, ready to be asked."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._by_key = {(r.point, r.method): r for r in results}
        self.methods = list(dict.fromkeys(r.method for r in results))
        self.clips = list(dict.fromkeys(r.point.clip for r in results))
        self.points = sorted({(r.point.codec, r.point.qp) for r in results}, key=lambda p: (p[0] != "hevc", *p))
        self.codecs = list(dict.fromkeys(codec for codec, _ in self.points))

    @property
    def restorers(self) -> list[str]:
        """Methods other than the input."""
        return [m for m in self.methods if m != BASELINE]

    def result(self, clip: str, codec: str, qp: float, method: str) -> Result:
        """One result; KeyError where it was not measured."""
        return self._by_key[Point(clip, codec, qp), method]

    def deltas(self, method: str, codec: str, qp: float, measure: Measure) -> list[float | None]:
        """What a method adds to the input's measure, clip by clip. None where it was not measured."""
        out: list[float | None] = []
        for clip in self.clips:
            after = measure(self.result(clip, codec, qp, method).scores)
            before = measure(self.result(clip, codec, qp, BASELINE).scores)
            out.append(None if after is None or before is None else after - before)
        return out

    def gain(self, method: str, codec: str, qp: float) -> float:
        """Mean over clips of the gain in luma PSNR, dB: what the bars are about."""
        return mean_known(self.deltas(method, codec, qp, lambda s: s.y_psnr)) or 0.0


def markdown(table: Table) -> str:
    """The whole report: gains at a glance, every measure, every clip."""
    parts = [overview(table), *(_measures(table, method) for method in table.restorers)]
    parts += [_clips(table, method) for method in table.restorers]
    return "\n\n".join(parts) + "\n"


def rows_to_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column left-aligned and the others right-aligned."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def overview(table: Table) -> str:
    """Mean gains in luma PSNR, one line a method."""
    head = ["method", *(f"{codec} {qp:g}" for codec, qp in table.points)]
    rows = [[m, *(f"{table.gain(m, codec, qp):+.3f}" for codec, qp in table.points)] for m in table.restorers]
    inputs = [
        np.mean([table.result(clip, codec, qp, BASELINE).scores.y_psnr for clip in table.clips])
        for codec, qp in table.points
    ]
    rows.insert(0, ["input (dB)", *(f"{value:.2f}" for value in inputs)])
    title = f"## Gain in Y PSNR over the input, dB, mean over {len(table.clips)} clips"
    return f"{title}\n\n{rows_to_markdown(head, rows)}"


def _measures(table: Table, method: str) -> str:
    used = {
        name: entry
        for name, entry in _MEASURES.items()
        if any(
            entry[0](table.result(clip, *point, method).scores) is not None
            for clip in table.clips
            for point in table.points
        )
    }
    head = ["codec, QP", *used, "worst clip", "residual change across / within groups"]
    rows = []
    for codec, qp in table.points:
        row = [f"{codec} {qp:g}"]
        for measure, form in used.values():
            mean = mean_known(table.deltas(method, codec, qp, measure))
            row.append("-" if mean is None else format(mean, form))
        row.append(f"{min(d for d in table.deltas(method, codec, qp, lambda s: s.y_psnr) if d is not None):+.3f}")
        scores = [table.result(clip, codec, qp, method).scores for clip in table.clips]
        sides = [mean_known([s.across for s in scores]), mean_known([s.within for s in scores])]
        row.append(" / ".join("-" if side is None else f"{side:.3f}" for side in sides))
        rows.append(row)
    return f"## {method}: what it adds to each measure\n\n{rows_to_markdown(head, rows)}"


def _clips(table: Table, method: str) -> str:
    head = ["clip", *(f"{codec} {qp:g}" for codec, qp in table.points)]
    columns = [table.deltas(method, codec, qp, lambda s: s.y_psnr) for codec, qp in table.points]
    rows = [[clip, *(f"{column[i]:+.3f}" for column in columns)] for i, clip in enumerate(table.clips)]
    return f"## {method}: gain in Y PSNR by clip, dB\n\n{rows_to_markdown(head, rows)}"


def to_json(table: Table, results: Sequence[Result], settings: Settings) -> dict[str, Any]:
    """Everything, for programs."""
    gains = {
        method: {
            codec: {f"{qp:g}": round(table.gain(method, codec, qp), 5) for c, qp in table.points if c == codec}
            for codec in table.codecs
        }
        for method in table.restorers
    }
    return {
        "vsdiqp": __version__,
        "settings": asdict(settings),
        "y_psnr_gain": gains,
        "results": [result.to_json() for result in results],
    }


def write(results: Sequence[Result], settings: Settings, out: str | Path) -> list[Path]:
    """Writes ``results.json``, ``table.md`` and the plots into `out`; returns their paths."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    table = Table(results)
    (out / "results.json").write_text(json.dumps(to_json(table, results, settings), indent=1), encoding="utf-8")
    (out / "table.md").write_text(markdown(table), encoding="utf-8")
    return [out / "results.json", out / "table.md", *plots(table, out)]


def plots(table: Table, out: Path) -> list[Path]:
    """Gain against QP, rate-distortion and PSNR over time, as PNG files."""
    import matplotlib

    matplotlib.use("Agg")
    return [
        _plot(table, out / "gain-over-qp.png", _draw_gain),
        _plot(table, out / "rate-distortion.png", _draw_rate),
        *(_plot_over_time(table, clip, out) for clip in table.clips),
    ]


def _plot(table: Table, path: Path, draw: Callable[[Table, str, Any], None]) -> Path:
    """One figure with a panel for each codec."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(table.codecs), figsize=(6 * len(table.codecs), 4.5), squeeze=False)
    for codec, panel in zip(table.codecs, axes[0], strict=True):
        draw(table, codec, panel)
        panel.set_title(codec.upper())
        panel.grid(alpha=0.3)
    if axes[0][0].get_legend_handles_labels()[0]:
        axes[0][0].legend()
    _save(figure, path)
    return path


def _draw_gain(table: Table, codec: str, panel: Any) -> None:
    qps = [qp for c, qp in table.points if c == codec]
    for method in table.restorers:
        (line,) = panel.plot(qps, [table.gain(method, codec, qp) for qp in qps], marker="o", label=plotted(method))
        spread = [[d for d in table.deltas(method, codec, qp, lambda s: s.y_psnr) if d is not None] for qp in qps]
        panel.fill_between(qps, [min(s) for s in spread], [max(s) for s in spread], alpha=0.1, color=line.get_color())
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_xlabel("QP")
    panel.set_ylabel("gain in Y PSNR, dB (mean; band: worst to best clip)")


def _draw_rate(table: Table, codec: str, panel: Any) -> None:
    qps = [qp for c, qp in table.points if c == codec]
    for method in table.methods:
        results = [[table.result(clip, codec, qp, method) for clip in table.clips] for qp in qps]
        # Bitrates of clips differ by orders of magnitude: the geometric mean keeps every clip's say.
        rates = [float(np.exp(np.mean([np.log(r.kbps) for r in row]))) for row in results]
        quality = [float(np.mean([r.scores.y_psnr for r in row])) for row in results]
        panel.plot(rates, quality, marker="o", label=plotted(method))
    panel.set_xscale("log")
    panel.set_xlabel("kbit/s (geometric mean over clips)")
    panel.set_ylabel("Y PSNR, dB (mean over clips)")


def _plot_over_time(table: Table, clip: str, out: Path) -> Path:
    """Per-frame PSNR of one clip at each codec's middle QP."""

    def draw(table: Table, codec: str, panel: Any) -> None:
        qps = [qp for c, qp in table.points if c == codec]
        qp = qps[len(qps) // 2]
        for method in table.methods:
            frames = table.result(clip, codec, qp, method).frames
            panel.plot([f.y_psnr for f in frames], marker=".", label=plotted(method))
        panel.set_xlabel(f"frame of {plotted(clip)} at QP {qp:g}")
        panel.set_ylabel("Y PSNR, dB")

    return _plot(table, out / f"over-time-{clip}.png", draw)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
