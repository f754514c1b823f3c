import math

import pytest

from vsdiqp.codecs.scales import CODECS, FOREIGN, check_qp, scale_of
from vsdiqp.errors import DiqpError


@pytest.mark.parametrize(("codec", "qp"), [("hevc", 0), ("hevc", 51), ("hevc", 27.5), ("av1", 0), ("av1", 255)])
def test_the_whole_range_of_a_codec_is_accepted(codec: str, qp: float) -> None:
    assert check_qp(codec, qp) == qp


@pytest.mark.parametrize(
    ("codec", "qp"), [("hevc", -1), ("hevc", 51.5), ("av1", 256), ("av1", -0.5), ("hevc", math.nan), ("av1", math.inf)]
)
def test_a_qp_out_of_range_is_refused_with_the_range(codec: str, qp: float) -> None:
    with pytest.raises(DiqpError, match=f"0 to {CODECS[codec].high}"):
        check_qp(codec, qp)


def test_an_unknown_codec_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DiqpError, match="av1, hevc"):
        scale_of("h264")


def test_h264_qp_is_hevc_qp_at_every_depth() -> None:
    convert = FOREIGN["h264"].convert
    assert [convert(30, 8), convert(42, 10)] == [30, 30]


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video", "mpeg4"])
def test_twice_the_step_of_mpeg_is_six_hevc_steps(codec: str) -> None:
    convert = FOREIGN[codec].convert
    assert convert(16, 8) - convert(8, 8) == pytest.approx(6)
    # H.265's step is 1 at QP 4; older codecs do more damage with the same step.
    assert 4 <= convert(1, 8) <= 10
