"""Small networks of the kinds that GPUs run."""

from vsdiqp.network import DiQPConfig

LITE_LIKE = DiQPConfig(
    name="tiny-lite",
    embed_dim=8,
    widths=(8, 8),
    depths=(0, 1, 0),
    heads=(1, 1, 1),
    depthwise_taps=1,
    joint=False,
    skip="add",
    down_kernel=2,
    stem_scale=2,
    stem_blocks=1,
    head_blocks=1,
    neighbours=3,
    look_around=(),
    look_ahead=(),
    location="continuous",
    colour="ycbcr",
    tile=32,
)
"""As lite: frames one by one, with neighbours near and far, no guides."""
