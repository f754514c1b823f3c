"""Promises of the thumbnails: OpenCV's and torch's bicubic, only where needed, one a frame."""

import numpy as np
import pytest
import torch

from tests.network import vectors
from tests.stand_ins import clip_format, colour, make_run, noise
from vsdiqp.clip import FrameColour
from vsdiqp.context import Thumbnailer, thumbnails
from vsdiqp.planes import FrameMap


def whole(clip, frames, planes):
    picture = torch.empty(3, clip.height, clip.width)
    frames.read(planes, 0, 0, picture)
    return picture


@pytest.mark.parametrize("network_colour", ["rgb", "ycbcr"])
@pytest.mark.parametrize("size", [(32, 48), (7, 5), (64, 80), (16, 160), (90, 11)])
def test_a_thumbnail_is_the_frame_shrunk_bicubically(network_colour, size):
    clip = clip_format("YUV", 10, (1, 1), (160, 90))
    frames = FrameMap(clip, colour(), network_colour)
    expected = torch.nn.functional.interpolate(
        whole(clip, frames, noise(clip, 1))[None], size, mode="bicubic", align_corners=False
    )[0].clamp(0, 1)
    got = Thumbnailer(160, 90, size).shrink(frames, noise(clip, 1))
    torch.testing.assert_close(got, expected, rtol=0, atol=4e-5)  # torch places pixels in fp32


def test_a_thumbnail_is_opencvs():
    """What the released network was trained with, to the rounding of its 8 bits and OpenCV's own last digit."""
    with np.load(vectors.DATA / "resize.npz") as file:
        expected = dict(file)
    source = (255 * vectors.picture("resize/0", 512)).round().to(torch.uint8).numpy()
    for name, small in expected.items():
        width, height = (int(number) for number in name.split("_")[1].split("x"))
        planes = tuple(np.ascontiguousarray(channel[:height, :width]) for channel in source)
        clip = clip_format("RGB", 8, (0, 0), (width, height))
        got = 255 * Thumbnailer(width, height, (32, 32)).shrink(FrameMap(clip, FrameColour(0, True, 0), "rgb"), planes)
        off = np.abs(got.round().numpy() - small.transpose(2, 0, 1))
        assert off.max() <= 1 and off.mean() < 0.01, name


def test_the_released_networks_reduction_has_its_published_taps():
    """7680x4096 to 512x512 is columns 15i + 7 and rows 8j + 2 .. 8j + 5 with weights (-3, 19, 19, -3) / 32."""
    asked = []

    class Probe:
        def sample(self, planes, rows, columns):
            asked.extend((rows, columns))
            return torch.from_numpy(np.stack([np.add.outer(rows % 8 == 2, 0 * columns)] * 3)).float()

    result = Thumbnailer(7680, 4096, (512, 512)).shrink(Probe(), ())
    rows, columns = asked
    assert set(np.arange(512) * 15 + 7) <= set(columns)
    np.testing.assert_array_equal(rows, np.add.outer(8 * np.arange(512), np.arange(2, 6)).ravel())
    # One row of four lit with weight -3/32: below 0, so limited.
    assert torch.all(result == 0)


def test_only_the_pixels_that_matter_are_read_of_a_large_frame():
    clip = clip_format("YUV", 8, (1, 1), (1024, 512))
    planes = noise(clip, 2)
    frames = FrameMap(clip, colour(), "ycbcr")
    counted = []

    class Counting:
        def sample(self, planes, rows, columns):
            counted.append(len(rows) * len(columns))
            return frames.sample(planes, rows, columns)

    Thumbnailer(1024, 512, (16, 16)).shrink(Counting(), planes)
    assert counted == [64 * 64]


def test_a_frame_in_both_guides_is_shrunk_once_and_unused_guides_not_at_all():
    clip = clip_format("YUV", 8, (1, 1), (64, 48))
    frames = FrameMap(clip, colour(), "ycbcr")
    run = make_run(clip, colour())

    class Counting(Thumbnailer):
        calls = 0

        def shrink(self, frames, planes):
            self.calls += 1
            return super().shrink(frames, planes)

    for around, ahead, calls in ((True, True, 3), (True, False, 2), (False, True, 2), (False, False, 0)):
        thumbnailer = Counting(64, 48, (16, 32))
        first, second = thumbnails(run, frames, thumbnailer, around, ahead)
        assert thumbnailer.calls == calls
        assert first.shape == ((1, 3, 2, 16, 32) if around else (1, 3, 2, 0, 0))
        assert second.shape == ((1, 3, 2, 16, 32) if ahead else (1, 3, 2, 0, 0))
    first, second = thumbnails(run, frames, Thumbnailer(64, 48, (16, 32)), True, True)
    assert torch.equal(first[0, :, 1], second[0, :, 0])
    assert not torch.equal(first[0, :, 0], first[0, :, 1])
