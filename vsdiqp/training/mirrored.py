"""How much of what a network predicts depends on which way round it sees a picture.

Codecs damage a picture much alike whichever way round it lies (mirrored, it keeps their grid). What a network makes of
it mirrored differs by chance alone, then, and a mean of several such answers has less of that.
"""

from collections import defaultdict
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field

import torch

from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP
from vsdiqp.training.batches import MIRRORINGS, predict
from vsdiqp.training.loss import luma_gain
from vsdiqp.training.validation import NOTHING, Restored, autocast, luma_codes


@dataclass(slots=True)
class Views:
    """Of single streams: Y-PSNR gains in dB, rounded to the clip's bits, and how far answers are apart."""

    one: list[float] = field(default_factory=list)
    """Of the network's answer."""
    two: list[float] = field(default_factory=list)
    """Of the mean of it and of the one to the picture upside down."""
    four: list[float] = field(default_factory=list)
    """Of the mean over all `MIRRORINGS`."""
    apart: list[float] = field(default_factory=list)
    """Mean square of what the answers differ from their mean by, as a share of the first residual's."""


@torch.no_grad()
def compare_views(
    streams: Iterable[Restored], network: DiQP, device: torch.device, precision: str
) -> dict[tuple[str, float], Views]:
    """By codec and QP, what ``network``, which restored these ``streams`` (`restored_streams`), makes of them mirrored.

    ``device``, ``precision``: as they were restored. Raises DiqpError where there are none.
    """
    found: dict[tuple[str, float], Views] = defaultdict(Views)
    mirrored = deepcopy(network).to(device).eval()
    for seen in streams:
        answers = [seen.restored]
        for axes in MIRRORINGS[1:]:
            with autocast(device, precision):
                answers.append(predict(mirrored, network.config, seen.batch, axes)[1].float())
        views, codes = found[seen.codec, seen.qp], luma_codes(seen.bits)
        for gains, count in ((views.one, 1), (views.two, 2), (views.four, len(answers))):
            mean = torch.stack(answers[:count]).mean(0)
            gains.append(luma_gain(seen.tile, mean, seen.batch, network.config, codes).mean().item())
        luma = torch.stack(answers)[:, :, 0]
        distance = (luma - luma.mean(0)).square().mean() * len(answers) / (len(answers) - 1)
        views.apart.append((distance / ((luma[0] - seen.tile[:, 0]).square().mean() + 1e-12)).item())
    if not found:
        raise DiqpError(NOTHING)
    return dict(found)


def table(found: dict[tuple[str, float], Views]) -> str:
    """Markdown: means by codec and QP."""
    lines = ["| codec | QP | streams | gain, dB | upside down, too | all four | apart |", "|---|---:|" + "---:|" * 5]
    for (codec, qp), views in sorted(found.items()):
        one, two, four, apart = (sum(v) / len(v) for v in (views.one, views.two, views.four, views.apart))
        lines.append(f"| {codec} | {qp:g} | {len(views.one)} | {one:+.3f} | {two:+.3f} | {four:+.3f} | {apart:.3f} |")
    return "\n".join(lines)
