"""How much of a network's prediction to apply, measured on clips that it was not trained on.

A prediction is the mean of what the source may be. Rounded to the clip's bits, or where the damage is not much larger
than a code, all of it may lose where a part gains; so may chroma, whose damage says less of itself.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
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
    """
    luma: dict[str, list[tuple[float, float]]] = defaultdict(list)
    chroma: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (codec, qp), rows in sorted(found.luma.items()):
        chosen = best(rows)
        luma[codec].append((float(qp), SHARES[chosen]))
        if planes := found.chroma.get((codec, qp)):
            chroma[codec].append((float(qp), CHROMA[best([shares[chosen] for shares in planes])]))
    trust, chroma_trust = ({codec: tuple(points) for codec, points in by.items()} for by in (luma, chroma))
    config = dataclasses.replace(network.config, trust=trust, chroma_trust=chroma_trust, tile=tile)
    result = DiQP(config)
    result.load_state_dict(network.state_dict())
    return result.prepare()


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
