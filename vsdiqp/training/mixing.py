"""Networks between two networks: trained on from the same weights, they lie in one valley, and its middle is lower.

After Wortsman et al., "Model soups", ICML 2022.
"""

import torch

from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP


@torch.no_grad()
def mix(first: DiQP, second: DiQP, share: float) -> DiQP:
    """``1 - share`` of the first network's weights and ``share`` of the second's; the first's settings.

    Raises DiqpError where the networks are not of one shape, or a share is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise DiqpError(f"share is {share:g}: give 0 (the first network) to 1 (the second)")
    ours, others = first.state_dict(), second.state_dict()
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in others.items()}:
        raise DiqpError("only networks of one shape can be mixed: give two that were trained from the same weights")
    result = DiQP(first.config)
    result.load_state_dict({k: torch.lerp(v.double(), others[k].double(), share).to(v.dtype) for k, v in ours.items()})
    return result.prepare()
