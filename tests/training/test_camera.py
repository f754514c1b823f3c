from pathlib import Path

import av
import numpy as np
import pytest
import torch
from material import fill_sources, picture

from vsdiqp.training import camera
from vsdiqp.training.sources import Library, find_sources


def test_rgb_to_yuv_agrees_with_colour_science() -> None:
    """Primaries, black, white and grey have well-known BT.709 and BT.601 codes."""
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]])
    known = {
        1: [(63, 102, 240), (173, 42, 26), (32, 240, 118), (16, 128, 128), (235, 128, 128), (126, 128, 128)],
        6: [(81, 90, 240), (145, 54, 34), (41, 240, 110), (16, 128, 128), (235, 128, 128), (126, 128, 128)],
    }
    for matrix, codes in known.items():
        clip = camera.to_yuv420(colours[:, :, None, None].expand(6, 3, 8, 8), matrix, 8)
        found = [(int(clip.y[n, 0, 0]), int(clip.c[0, n, 0, 0]), int(clip.c[1, n, 0, 0])) for n in range(6)]
        assert found == codes


def test_ten_bits_are_four_times_finer() -> None:
    rgb = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    eight, ten = camera.to_yuv420(rgb, 1, 8), camera.to_yuv420(rgb, 1, 10)
    assert ten.y.dtype == np.uint16
    assert np.abs(ten.y / 4 - eight.y).max() <= 0.625
    assert np.abs(ten.c / 4 - eight.c).max() <= 0.625


def test_chroma_is_sited_left() -> None:
    """A linear ramp of blue keeps its value at column 2i (and between rows 2j and 2j+1)."""
    ramp = torch.linspace(0, 1, 33)[:32]
    rgb = torch.stack([torch.full((32, 32), 0.5), torch.full((32, 32), 0.5), ramp.expand(32, 32)])[None]
    for axis in (0, 1):
        clip = camera.to_yuv420(rgb if axis else rgb.transpose(2, 3), 1, 10)
        full = torch.linspace(0, 1, 33)[:32].double().numpy()
        luma = 0.2126 * 0.5 + 0.7152 * 0.5 + 0.0722 * full
        cb = (full - luma) / 1.8556 * 224 * 4 + 512
        expected = cb[::2] if axis else (cb[::2] + cb[1::2]) / 2
        got = clip.c[0, 0].astype(float)
        got = got[0] if axis else got[:, 0]
        assert np.abs(got - expected)[1:].max() <= 0.51


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    fill_sources(tmp_path / "sources")
    return tmp_path / "sources"


def test_clips_are_what_was_asked_for(sources: Path) -> None:
    found = find_sources(sources)
    assert [source.name for source in found] == ["clip.mkv", "stills/0.png", "stills/1.png"]
    library = Library()
    for seed in range(12):
        shot = camera.render(found, library, (64, 64), 9, np.random.default_rng(seed))
        assert shot.rgb.shape == (9, 3, 64, 64)
        assert float(shot.rgb.min()) >= 0 and float(shot.rgb.max()) <= 1
        assert all(0 < cut < 9 for cut in shot.cuts)


def test_same_seed_same_clip_whatever_was_rendered_before(sources: Path) -> None:
    found = find_sources(sources)
    first = camera.render(found, Library(), (64, 64), 5, np.random.default_rng(4)).rgb
    used = Library(budget=1)
    for seed in range(4):
        camera.render(found, used, (64, 64), 5, np.random.default_rng(seed))
    assert torch.equal(camera.render(found, used, (64, 64), 5, np.random.default_rng(4)).rgb, first)


def test_shots_differ_and_most_of_them_move(sources: Path) -> None:
    found = find_sources(sources)
    library = Library()
    shots = [camera.render(found, library, (64, 64), 5, np.random.default_rng(seed)).rgb for seed in range(16)]
    moving = sum(float((shot[0] - shot[4]).abs().mean()) > 0.004 for shot in shots)
    assert moving >= 8
    means = {round(float(shot.mean()), 4) for shot in shots}
    assert len(means) >= 14


def test_a_pan_moves_by_fractions_of_a_pixel_without_losing_detail() -> None:
    """Frame n of a known pan equals the picture shifted by that much (Fourier shift of a smooth periodic picture)."""
    side = 64
    x = np.arange(192) * 2 * np.pi
    wave = 0.5 + 0.2 * np.sin(x / 8)[None] + 0.2 * np.cos(x / 6)[:, None]
    texture = torch.from_numpy(wave.astype(np.float32)).expand(1, 3, 192, 192)
    big = torch.nn.functional.interpolate(texture, size=(384, 384), mode="bicubic", align_corners=False)
    rng = np.random.default_rng(0)
    path = camera._Path((side, side), 5, rng)
    path._velocity, path.speed, path._offset = (0.0, 0.3), 0.3, np.array([0.5, 0.5])
    path._zoom = path._spin = path._tilt = path._acceleration = 0.0
    path._shake = path._bend = [(0.0, 0.0, 0.0)] * 3
    for time in range(5):
        got = camera._warp(big, path.grid(float(time), (192, 192)))[0].numpy()
        columns = (64.0 + np.arange(side) + 0.3 * (time - 2) + 0.5) * 2 * np.pi
        rows = (64.0 + np.arange(side) + 0.5) * 2 * np.pi
        expected = 0.5 + 0.2 * np.sin(columns / 8)[None] + 0.2 * np.cos(rows / 6)[:, None]
        assert np.abs(got - expected).max() < 0.02


def test_resampling_keeps_place_and_brightness() -> None:
    image = picture(96, 96)
    half = camera._resample(image, (16, 8, 80, 72), (32, 32)).numpy()
    blocks = image[8:72, 16:80].reshape(32, 2, 32, 2, 3).mean((1, 3)).transpose(2, 0, 1) / 255
    assert abs(half.mean() - blocks.mean()) < 0.004
    assert np.abs(half - blocks).mean() < 0.02
    native = camera._resample(image, (5, 7, 69, 71), (64, 64)).numpy()
    assert np.array_equal(native, image[7:71, 5:69].transpose(2, 0, 1).astype(np.float32) / 255)


def test_videos_read_as_rgb_as_swscale_would_play_them(sources: Path) -> None:
    video = find_sources(sources)[0]
    rgb = Library().rgb(video)
    planes = Library().planes(video)
    assert rgb.shape == (12, 96, 96, 3)
    with av.open(str(video.path)) as container:
        frame = next(container.decode(video=0))
    assert np.array_equal(planes.y[0], frame.to_ndarray()[:96])
    back = camera.to_yuv420(torch.from_numpy(rgb[:1].astype(np.float32) / 255).permute(0, 3, 1, 2), video.matrix, 8)
    # colours outside the RGB cube clip on the way; luma of the others survives the round trip
    assert np.median(np.abs(back.y[0].astype(int) - planes.y[0].astype(int))) <= 1
