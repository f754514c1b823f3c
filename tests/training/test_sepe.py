from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vsdiqp.errors import DiqpError
from vsdiqp.training.sepe import SepeDataset, find_sequences, shrink_bicubic


def write_frames(folder: Path, names: list[str], value: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        picture = np.full((48, 80, 3), value + index, np.uint8)
        picture[:, :, 1] = np.arange(80)
        picture[:, :, 2] = np.arange(48)[:, None]
        Image.fromarray(picture).save(folder / name)


def names(count: int, start: int = 0, suffix: str = "") -> list[str]:
    return [f"{number:03d}{suffix}.png" for number in range(start, start + count)]


LAYOUTS = {
    "paper": ("Encoded/07/QP-{}", "Raw/07", ""),
    "paper_one_sequence": ("Encoded/QP-{}", "Raw", ""),
    "sequence_first": ("07/Encoded/QP-{}", "07/Raw", ""),
    "program": ("007/QP-{}", "007", "_8K"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_pairs_encoded_with_pristine_frames(tmp_path: Path, layout: str) -> None:
    encoded, raw, suffix = LAYOUTS[layout]
    write_frames(tmp_path / raw, names(6, suffix=suffix), 100)
    for qp in (99, 255):
        # FFmpeg counts from 1
        write_frames(tmp_path / encoded.format(qp), names(6, start=1), 0)
    data = SepeDataset(tmp_path, "av1", crop=32, guide=16, look_ahead=2)
    assert [sequence.qp for sequence in data.sequences] == [99, 255]
    assert len(data) == 2 * 2
    sample = data.load(1, np.random.default_rng(0))
    assert (sample.middle, sample.frames, sample.qp, sample.codec) == (3, 6, 99, "av1")
    assert sample.tile.shape == sample.truth.shape == (3, 3, 32, 32)
    assert [int(sample.tile[0, frame, 0, 0]) for frame in range(3)] == [2, 3, 4]
    assert [int(sample.truth[0, frame, 0, 0]) for frame in range(3)] == [102, 103, 104]
    # n+1 = 4 and the last frame, 5, in place of 4 + 2
    assert [int(sample.ahead_tile[0, frame, 0, 0]) for frame in range(2)] == [4, 5]
    assert [int(sample.ahead_scaled[0, frame, 0, 0]) for frame in range(2)] == [4, 5]
    assert [int(sample.around[0, frame, 0, 0]) for frame in range(2)] == [2, 4]
    # columns and rows are painted with their own number
    assert int(sample.tile[1, 0, 0, 0]) == sample.left
    assert int(sample.tile[2, 0, 0, 0]) == sample.top


def test_tile_is_placed_inside_the_visible_window(tmp_path: Path) -> None:
    write_frames(tmp_path / "Raw", names(3), 0)
    write_frames(tmp_path / "Encoded/QP-9", names(3), 0)
    data = SepeDataset(tmp_path, "hevc", crop=16, guide=40, visible=(32, 40))
    rng = np.random.default_rng(1)
    shifts = set()
    for _ in range(20):
        sample = data.load(0, rng)
        assert (sample.height, sample.width) == (32, 40)
        assert sample.top + 16 <= 32 and sample.left + 16 <= 40
        # the guide has the window's own width, so its first column tells where the window lies
        window_left = int(sample.around[1, 0, 0, 0])
        assert int(sample.tile[1, 0, 0, 0]) == window_left + sample.left
        shifts.add(window_left)
    assert len(shifts) > 1


def test_missing_frames_are_named(tmp_path: Path) -> None:
    with pytest.raises(DiqpError, match="QP-x"):
        find_sequences(tmp_path)
    write_frames(tmp_path / "Encoded/QP-9", names(4), 0)
    with pytest.raises(DiqpError, match="no pristine frames"):
        find_sequences(tmp_path)
    write_frames(tmp_path / "Raw", names(3), 0)
    with pytest.raises(DiqpError, match="4 frames and its pristine folder 3"):
        find_sequences(tmp_path)
    write_frames(tmp_path / "Raw", names(4), 0)
    with pytest.raises(DiqpError, match="none of the wanted"):
        SepeDataset(tmp_path, "hevc", qps=[10])


def test_shrinking_agrees_with_torch_bicubic() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 150, 3), np.uint8)
    ours = shrink_bicubic(picture, (32, 40)).astype(np.float64)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].double()
    theirs = torch.nn.functional.interpolate(tensor, (32, 40), mode="bicubic", align_corners=False)[0]
    assert np.abs(ours - theirs.clamp(0, 255).permute(1, 2, 0).numpy()).max() <= 0.5 + 1e-6


def test_shrinking_8k_to_512_uses_the_known_taps() -> None:
    """From 7680x4096 it's columns 15i+7 and rows 8j+2..8j+5 with (-3, 19, 19, -3) / 32 (the specification's page)."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 120, 3), np.uint8)
    taps = np.stack([picture[2 + k :: 8, 7::15].astype(np.int64) for k in range(4)])
    expected = np.rint(np.tensordot(np.array([-3, 19, 19, -3]) / 32, taps, 1)).clip(0, 255)
    assert np.array_equal(shrink_bicubic(picture, (8, 8)), expected)
