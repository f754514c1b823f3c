import numpy as np
import pytest
from material import moving_clip

from vsdiqp.errors import DiqpError
from vsdiqp.training.degrade import (
    AV1_GOPS,
    AV1_TUNES,
    HEVC_GOPS,
    HEVC_TUNES,
    Clip,
    EncodeSettings,
    decode,
    encode,
    encode_lossless,
)


def psnr(clip: Clip, other: Clip) -> float:
    peak = 255 << (clip.bits - 8)
    return float(10 * np.log10(peak**2 / ((clip.y.astype(float) - other.y) ** 2).mean()))


@pytest.mark.parametrize("bits", [8, 10])
def test_lossless_streams_give_back_every_sample(bits: int) -> None:
    clip = moving_clip(bits=bits)
    back = decode(encode_lossless(clip))
    assert back.bits == bits
    assert np.array_equal(back.y, clip.y)
    assert np.array_equal(back.c, clip.c)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize(("codec", "fine", "coarse"), [("hevc", 20, 40), ("av1", 60, 220)])
def test_frames_come_back_whole_and_a_larger_qp_does_more_damage(
    codec: str, fine: float, coarse: float, bits: int
) -> None:
    clip = moving_clip(bits=bits)
    quality = []
    for qp in (fine, coarse):
        back = decode(encode(clip, EncodeSettings(codec, qp)).data)
        assert (back.frames, back.bits, back.y.shape, back.c.shape) == (9, bits, clip.y.shape, clip.c.shape)
        quality.append(psnr(clip, back))
    assert quality[0] > quality[1] + 6


@pytest.mark.parametrize(("codec", "qp"), [("hevc", 31), ("av1", 153), ("av1", 102), ("av1", 255)])
def test_flat_constant_qp_is_that_qp_on_every_frame(codec: str, qp: float) -> None:
    encoded = encode(moving_clip(), EncodeSettings(codec, qp, flat=True))
    assert encoded.qps == (qp,) * 9


@pytest.mark.parametrize("qp", [*range(0, 5), 101.5, *range(246, 256)])
def test_an_av1_index_is_what_was_encoded(qp: float) -> None:
    settings = EncodeSettings("av1", qp, preset="12", flat=True)
    assert abs(settings.qp - qp) <= 1
    assert encode(moving_clip(2), settings).qps == (settings.qp,) * 2


@pytest.mark.parametrize("qp", [22.5, 23.5])
def test_x265_has_no_half_qps(qp: float) -> None:
    with pytest.raises(DiqpError, match=rf"qp is {qp}; x265 encodes at whole constant QPs only"):
        EncodeSettings("hevc", qp)
    assert EncodeSettings("hevc", qp, "crf").options()["x265-params"].startswith(f"crf={qp}:")


def test_constant_qp_has_the_encoders_usual_offsets() -> None:
    """x265: I frames are 6 * log2(1.4) finer, B frames 6 * log2(1.3) coarser than P frames."""
    hevc = encode(moving_clip(), EncodeSettings("hevc", 37))
    assert hevc.qps[0] == 34
    assert set(hevc.qps[1:]) <= {37, 38, 39}
    assert hevc.mean_qps == hevc.qps
    av1 = encode(moving_clip(), EncodeSettings("av1", 153))
    assert max(av1.qps) == 153
    assert av1.qps[0] == min(av1.qps) < 120


def test_qps_are_in_display_order() -> None:
    """With keyframes every 8th frame, frames 0 and 8 are the ones with the finest quantiser."""
    for settings in (EncodeSettings("hevc", 37, gop="short"), EncodeSettings("av1", 200, gop="short")):
        qps = encode(moving_clip(), settings).qps
        assert min(qps[0], qps[8]) == min(qps)
        assert max(qps[0], qps[8]) < min(qps[1:4])


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_adaptive_modes_vary_the_qp(codec: str) -> None:
    for mode in ("crf", "aq"):
        encoded = encode(moving_clip(), EncodeSettings(codec, 28 if codec == "hevc" else 140, mode))
        assert len(encoded.qps) == len(encoded.mean_qps) == 9
        assert len(set(encoded.mean_qps)) > 1


SETTINGS = (
    [EncodeSettings("hevc", 32, gop=gop) for gop in HEVC_GOPS]
    + [EncodeSettings("hevc", 32, tune=tune) for tune in HEVC_TUNES]
    + [EncodeSettings("hevc", 32, preset=preset) for preset in ("ultrafast", "slow")]
    + [EncodeSettings("av1", 140, gop=gop) for gop in AV1_GOPS]
    + [EncodeSettings("av1", 140, tune=tune) for tune in AV1_TUNES]
    + [EncodeSettings("av1", 140, preset=preset) for preset in ("4", "12")]
)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.codec}-{s.preset}-{s.gop}-{s.tune}")
def test_all_named_settings_encode_every_frame(settings: EncodeSettings) -> None:
    clip = moving_clip()
    encoded = encode(clip, settings)
    assert len(encoded.qps) == 9
    assert psnr(clip, decode(encoded.data)) > 25


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_same_clip_and_settings_give_the_same_stream(codec: str) -> None:
    settings = EncodeSettings(codec, 40)
    one, two = (decode(encode(moving_clip(side=128), settings).data) for _ in range(2))
    assert np.array_equal(one.y, two.y)
    assert np.array_equal(one.c, two.c)


def test_part_of_a_stream() -> None:
    clip = moving_clip()
    part = decode(encode_lossless(clip), first=3, count=4)
    assert np.array_equal(part.y, clip.y[3:7])
    assert np.array_equal(part.c, clip.c[:, 3:7])
    with pytest.raises(DiqpError, match="ends after 2 of the 4"):
        decode(encode_lossless(clip), first=7, count=4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"codec": "vp9"}, "hevc, av1"),
        ({"qp": 52}, "takes 0..51"),
        ({"mode": "vbr"}, "cqp, crf or aq"),
        ({"gop": "endless"}, "low_delay"),
        ({"tune": "magic"}, "no_sao"),
        ({"preset": "6"}, "medium"),
    ],
)
def test_bad_settings_say_what_is_accepted(changes: dict[str, object], text: str) -> None:
    with pytest.raises(DiqpError, match=text):
        EncodeSettings(**{"codec": "hevc", "qp": 30, **changes})  # type: ignore[arg-type]


def test_planes_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(DiqpError, match="4:2:0"):
        Clip(np.zeros((3, 64, 64), np.uint8), np.zeros((2, 3, 64, 64), np.uint8))
