"""Clips whose chroma is finer than 4:2:0's get of a network's chroma what it was trained to say, and no more."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.stand_ins import clip_format, colour
from vsdiqp.backends.chroma import as_trained
from vsdiqp.planes import FrameMap

W, H = 48, 32
FINE = {"4:4:4": ("YUV", (0, 0)), "RGB": ("RGB", (0, 0)), "4:2:2": ("YUV", (1, 0)), "4:4:0": ("YUV", (0, 1))}


def residual() -> torch.Tensor:
    return 0.05 * torch.randn(1, 3, 3, H, W, generator=torch.Generator().manual_seed(1))


def test_at_444_it_is_what_a_420_clip_takes_scaled_up_as_its_chroma_is() -> None:
    given = residual()
    form = clip_format("YUV", 32, (1, 1), (W, H), "float")
    frames = FrameMap(form, colour("YUV"), "ycbcr")
    black = tuple(np.zeros((H >> bool(i), W >> bool(i)), np.float32) for i in range(3))
    taken = tuple(plane.copy() for plane in black)
    frames.add(black, taken, given[0, :, 0], 0, 0, H)
    shown = torch.empty(3, H, W)
    frames.read(taken, 0, 0, shown)
    offset = torch.empty(3, H, W)
    frames.read(black, 0, 0, offset)
    fine = as_trained(given, clip_format("YUV", 32, (0, 0), (W, H), "float"), "ycbcr")
    torch.testing.assert_close(fine[0, 1:, 0], (shown - offset)[1:], rtol=0, atol=1e-5)
    assert torch.equal(fine[:, :1], given[:, :1]), "luma is luma"


@pytest.mark.parametrize(("family", "sub"), FINE.values(), ids=FINE)
def test_what_changes_evenly_stays(family: str, sub: tuple[int, int]) -> None:
    """But at the ends; elsewhere the filter has no say in a slope, only in what goes up and down."""
    ramp = torch.linspace(0, 1, W) + torch.linspace(0, 2, H)[:, None]
    given = ramp.expand(1, 3, 3, H, W)
    fine = as_trained(given, clip_format(family, 16, sub, (W, H)), "ycbcr")
    torch.testing.assert_close(fine[..., 3:-3, 3:-3], given[..., 3:-3, 3:-3], rtol=0, atol=1e-5)


def test_others_are_left_alone() -> None:
    given = residual()
    for family, sub, network in (("YUV", (1, 1), "ycbcr"), ("GRAY", (0, 0), "ycbcr"), ("RGB", (0, 0), "rgb")):
        assert as_trained(given, clip_format(family, 16, sub, (W, H)), network) is given


@pytest.mark.parametrize("model", ["lite", "base"])
def test_encoded_at_444_a_photograph_gets_better_in_every_plane(model: str, tmp_path: Path) -> None:
    """A camera's move over one, by x265 at 4:4:4: drawn animation lost up to 1.4 dB of chroma."""
    av = pytest.importorskip("av")
    vs = pytest.importorskip("vapoursynth")
    data = pytest.importorskip("skimage.data")
    photograph = data.astronaut()

    def yuv(n: int) -> NDArray[np.uint8]:
        view = np.ascontiguousarray(photograph[40 + 2 * n : 424 + 2 * n, 2 * n : 480 + 2 * n][::3, ::3])
        frame = av.VideoFrame.from_ndarray(view, format="rgb24")
        return frame.reformat(format="yuv444p").to_ndarray()

    truth = [yuv(n) for n in range(0, 15, 3)]
    _, height, width = truth[0].shape
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": "qp=32:log-level=none"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for planes in truth:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv444p")))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "a.mkv")) as container:
        decoded = [frame.to_ndarray() for frame in container.decode(video=0)]

    def fill(n: int, f: object) -> object:
        out = f.copy()  # type: ignore[attr-defined]
        for plane in range(3):
            np.asarray(out[plane])[:] = decoded[n][plane]
        return out

    blank = vs.core.std.BlankClip(width=width, height=height, format=vs.YUV444P8, length=len(truth), keep=True)
    clip = vs.core.std.ModifyFrame(blank, blank, fill).resize.Point(format=vs.YUV444P16)
    restored = clip.diqp.Restore(qp=32, codec="hevc", model=model, backend="cpu")

    def error(source: object, plane: int) -> float:
        frames = [np.asarray(source.get_frame(n)[plane]) / 256 for n in range(len(truth))]  # type: ignore[attr-defined]
        return float(np.mean([np.square(a - t[plane]).mean() for a, t in zip(frames, truth, strict=True)]))

    gains = [10 * np.log10(error(clip, plane) / error(restored, plane)) for plane in range(3)]
    assert min(gains) > 0.0, gains
