"""How much of a network's prediction to apply, measured on clips that it was not trained on.

A prediction is the mean of what the source may be. Rounded to the clip's bits, or where the damage is not much larger
than a code, all of it may lose where a part gains; so may chroma, whose damage says less of itself.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP, DiQPConfig
from vsdiqp.training.batches import unsited
from vsdiqp.training.loss import chroma_gain, luma_gain
from vsdiqp.training.validation import NOTHING, Restored, chroma_codes, luma_codes

SHARES = tuple(step / 20 for step in range(27))
"""Shares of luma that are tried: 0 to 1.3."""
CHROMA = tuple(step / 10 for step in range(11))
"""Shares of chroma, of what is applied of luma."""
LOSS = 10.0
"""What a dB lost weighs against a dB gained: nobody forgives a filter that harms."""


@dataclass(slots=True)
class Measured:
    """Gains in dB of single streams (rows) at the shares tried (columns), by codec and QP."""

    luma: dict[tuple[str, float], list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    chroma: dict[tuple[str, float], list[list[list[float]]]] = field(default_factory=lambda: defaultdict(list))
    """Two rows a stream, one a plane, for every share of SHARES: stream x plane, share, share of chroma."""


def best(rows: Sequence[Sequence[float]]) -> int:
    """The column with the highest mean, losses weighing LOSS times what gains do; the first of equals."""
    gains = torch.tensor(rows)
    return int((gains.clamp(min=0) + LOSS * gains.clamp(max=0)).mean(0).argmax())


def measure(streams: Iterable[Restored], config: DiQPConfig) -> Measured:
    """Gains at all shares of what a network of ``config`` made of a validation pool (`restored_streams`).

    Raises DiqpError where it has no damaged frames.
    """
    found = Measured()
    for seen in streams:
        change = seen.restored - seen.tile
        gains = [
            luma_gain(seen.tile, seen.tile + share * change, seen.batch, config, luma_codes(seen.bits)).mean().item()
            for share in SHARES
        ]
        found.luma[seen.codec, seen.qp].append(gains)
        if config.colour == "ycbcr":
            found.chroma[seen.codec, seen.qp] += _chroma_gains(unsited(change[:, 1:]), seen)
    if not found.luma:
        raise DiqpError(NOTHING)
    return found


def _chroma_gains(change: Tensor, seen: Restored) -> list[list[list[float]]]:
    """For both planes, every share of luma and every share of chroma of the residual 1, 2, 3, h / 2, w / 2."""
    table = torch.zeros(2, len(SHARES), len(CHROMA))
    products = sorted({round(a * b, 4) for a in SHARES for b in CHROMA})
    gains = {product: chroma_gain(product * change, seen.batch, chroma_codes(seen.bits))[0] for product in products}
    for i, a in enumerate(SHARES):
        for j, b in enumerate(CHROMA):
            table[:, i, j] = gains[round(a * b, 4)]
    result: list[list[list[float]]] = table.tolist()
    return result


def trusted(network: DiQP, found: Measured, tile: int) -> DiQP:
    """The network with ``trust`` and, where it restores the clip's own planes, ``chroma_trust`` set for every codec and
    QP measured, and ``tile`` as its default tile side.

    Outside the span of QPs that were measured for a codec the network's own points stay.
    """
    luma: dict[str, list[tuple[float, float]]] = defaultdict(list)
    chroma: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (codec, qp), rows in sorted(found.luma.items()):
        chosen = best(rows)
        luma[codec].append((float(qp), SHARES[chosen]))
        if planes := found.chroma.get((codec, qp)):
            chroma[codec].append((float(qp), CHROMA[best([shares[chosen] for shares in planes])]))
    config = network.config
    trust, chroma_trust = _joined(config.trust, luma), _joined(config.chroma_trust, chroma)
    result = DiQP(dataclasses.replace(config, trust=trust, chroma_trust=chroma_trust, tile=tile))
    result.load_state_dict(network.state_dict())
    return result.prepare()


def _joined(
    own: Mapping[str, Sequence[tuple[float, float]]], measured: Mapping[str, Sequence[tuple[float, float]]]
) -> dict[str, tuple[tuple[float, float], ...]]:
    """The points measured of each codec, and a network's own ones outside their span."""
    joined = {codec: tuple(points) for codec, points in own.items()}
    for codec, points in measured.items():
        low, high = points[0][0], points[-1][0]
        kept = joined.get(codec, ())
        below, above = ([p for p in kept if p[0] < low], [p for p in kept if p[0] > high])
        joined[codec] = (*below, *points, *above)
    return joined


def unmeasured(network: DiQP, found: Measured) -> list[str]:
    """A line for every codec that is trusted, below the lowest QP measured, as there, since nothing else is known."""
    lines = []
    for codec in sorted({codec for codec, _ in found.luma} & network.config.qp_range.keys()):
        lowest = min(qp for at, qp in found.luma if at == codec)
        low = network.config.qp_range[codec][0]
        if low < lowest and all(qp >= lowest for qp, _ in network.config.trust.get(codec, ())):
            lines.append(
                f"{codec}: nothing is known of QPs {low:g} to {lowest:g}, where the share of QP {lowest:g} will be "
                "applied, though weak damage often bears less; measure on a pool with lower QPs as well"
            )
    return lines


def table(found: Measured, network: DiQP) -> str:
    """Markdown: by codec and QP the share applied, the mean and the worst gain there and of the whole prediction."""
    lines = ["| codec | QP | streams | share | gain, dB | worst | all of it | worst |", "|---|---:|" + "---:|" * 6]
    whole = SHARES.index(1.0)
    for (codec, qp), rows in sorted(found.luma.items()):
        share = network.confidence(qp, codec)
        at = min(range(len(SHARES)), key=lambda i: abs(SHARES[i] - share))
        columns = [[row[at] for row in rows], [row[whole] for row in rows]]
        values = " | ".join(f"{sum(c) / len(c):+.3f} | {min(c):+.3f}" for c in columns)
        lines.append(f"| {codec} | {qp:g} | {len(rows)} | {share:.2f} | {values} |")
    return "\n".join(lines)
