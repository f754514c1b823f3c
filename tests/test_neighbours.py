"""Neighbours: every frame of a run beside the frames around it, aligned, the same in tiles, threads and training."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.alignment.test_motion import texture
from tests.stand_ins import Zero, clip_format, colour, empty
from vsdiqp.clip import ClipFormat, Planes, Run, Settings
from vsdiqp.neighbours import Neighbours
from vsdiqp.planes import frame_map
from vsdiqp.restorer import Restorer
from vsdiqp.training.dataset import DecodedItem, DecodedStream, PoolDataset
from vsdiqp.training.degrade import Clip

FP32 = Settings(backend="cpu", precision="fp32")
SIZE = (168, 120)


def moving_luma(count: int, speed: tuple[int, int] = (5, -3), bits: int = 8) -> np.ndarray:
    """[count, h, w] code values: one texture moving by ``speed`` samples a frame."""
    large = texture(400, 400) * (1 << (bits - 8))
    views = [large[140 - speed[1] * n :, 120 - speed[0] * n :][: SIZE[1], : SIZE[0]] for n in range(count)]
    return np.clip(np.stack(views) + 0.5, 0, (1 << bits) - 1).astype(np.uint8 if bits == 8 else np.uint16)


def as_planes(clip: ClipFormat, luma: np.ndarray) -> Planes:
    chroma = np.full((clip.height >> clip.subsampling_h, clip.width >> clip.subsampling_w), 1 << (clip.bits - 1))
    return (np.ascontiguousarray(luma), *(chroma.astype(luma.dtype) for _ in range(2)))


def run_of(clip: ClipFormat, luma: np.ndarray, count: int = 2) -> Run:
    """Frames of ``luma``: ``count`` before, three, ``count`` after."""
    planes = [as_planes(clip, frame) for frame in luma]
    frames = tuple(planes[count : count + 3])
    targets = tuple(empty(clip) for _ in range(3))
    before, after = tuple(planes[:count]), tuple(planes[count + 3 :])
    return Run(frames, frames[2], targets, colour(), 37.0, "hevc", 10, before=before, after=after)


def seen(clip: ClipFormat, run: Run, settings: Settings = FP32) -> Zero:
    """The stand-in network after it was shown a run."""
    network = Zero(neighbours=2, tile=256, multiple=8, first_pass="lite" if run.first else "")
    Restorer(settings, clip, network).restore(run)
    return network


def test_neighbours_are_moved_onto_their_frame():
    clip = clip_format(size=SIZE)
    network = seen(clip, run_of(clip, moving_luma(7)))
    (tile,), (beside,) = network.tiles, network.besides
    assert beside.shape == (1, 3, 4, *tile.shape[-2:])
    inner = (..., slice(40, 80), slice(40, 120))
    own = tile[:, 0, :, None]
    assert (beside - own)[inner].abs().mean() < 0.3 / 219
    assert (tile[:, 0, 1] - tile[:, 0, 0])[inner].abs().mean() > 5 / 219


def test_order_is_nearest_first_earlier_before_later():
    clip = clip_format(size=SIZE)
    flat = np.stack([np.full(SIZE[::-1], 40 + 20 * n, np.uint8) for n in range(7)])
    (beside,) = seen(clip, run_of(clip, flat)).besides
    steps = (beside[0, :, :, 0, 0] * 219 + 16 - 40) / 20
    for frame in range(3):
        assert steps[frame].tolist() == pytest.approx([frame + 2 + s for s in (-1, 1, -2, 2)], abs=1e-3)


def test_a_repeated_frame_is_its_own_neighbour_to_the_bit():
    clip = clip_format(size=SIZE)
    run = run_of(clip, moving_luma(7))
    first, last = run.frames[0], run.frames[2]
    run = dataclasses.replace(run, before=(first, first), after=(last, last))
    network = seen(clip, run)
    (tile,), (beside,) = network.tiles, network.besides
    assert (beside[0, 0, 0] == tile[0, 0, 0]).all() and (beside[0, 0, 2] == tile[0, 0, 0]).all()
    assert (beside[0, 2, 1] == tile[0, 0, 2]).all() and (beside[0, 2, 3] == tile[0, 0, 2]).all()


@pytest.mark.parametrize("family", ["YUV", "RGB", "GRAY"])
def test_tiles_show_what_the_whole_frame_shows(family):
    clip = dataclasses.replace(clip_format(family, size=SIZE), subsampling_w=0, subsampling_h=0)
    run = run_of(clip, moving_luma(7))
    if family == "GRAY":
        frames = [(planes[0],) for planes in (*run.before, *run.frames, *run.after)]
        targets = tuple((t[0],) for t in run.targets)
        run = dataclasses.replace(
            run, before=tuple(frames[:2]), frames=tuple(frames[2:5]), after=tuple(frames[5:]), targets=targets
        )
    run = dataclasses.replace(run, colour=colour(family))
    whole = seen(clip, run)
    tiled = seen(clip, run, dataclasses.replace(FP32, tile=(64, 64), overlap=16))
    assert len(tiled.tiles) > 4
    for tile, beside, (left, top) in zip(tiled.tiles, tiled.besides, tiled.places, strict=True):
        part = (..., slice(top, min(top + 64, SIZE[1])), slice(left, min(left + 64, SIZE[0])))
        inside = (..., slice(0, SIZE[1] - top), slice(0, SIZE[0] - left))
        assert torch.allclose(tile[inside], whole.tiles[0][part], atol=1e-6)
        assert torch.allclose(beside[inside], whole.besides[0][part], atol=1e-6)


def test_threads_change_nothing():
    clip = clip_format(size=SIZE)
    run = run_of(clip, moving_luma(7))
    found = []
    for threads in (1, 3):
        neighbours = Neighbours(clip, 4, threads)
        frames = frame_map(clip, run.colour, "ycbcr", torch.device("cpu"))
        for _ in range(2):  # the second run works in the first one's memory
            neighbours.begin(run, frames)
        out = torch.empty(3, 4, 120, 168)
        neighbours.fill(0, 0, torch.zeros(3, 120, 168), out)
        neighbours.close()
        found.append(out)
    assert (found[0] == found[1]).all()


def test_without_strength_no_neighbours_are_asked_for():
    clip = clip_format(size=SIZE)
    assert Restorer(FP32, clip, Zero(neighbours=2)).neighbours == 2
    assert Restorer(dataclasses.replace(FP32, strength=0.0), clip, Zero(neighbours=2)).neighbours == 0
    assert Restorer(FP32, clip, Zero()).neighbours == 0


def test_with_a_first_pass_its_frames_are_seen_and_searched():
    """Noise of the decoded frames is neither shown nor in the way of the motion."""
    clip = clip_format(size=SIZE)
    clean = run_of(clip, moving_luma(7))
    noise = np.random.default_rng(0)
    noisy = run_of(clip, np.clip(moving_luma(7) + noise.normal(0, 25, (7, *SIZE[::-1])), 0, 255).astype(np.uint8))
    (shown,) = seen(clip, clean).besides
    (passed,) = seen(clip, dataclasses.replace(noisy, first=clean.sequence)).besides
    assert torch.equal(passed[:, :, 1:], shown)


def test_with_a_first_pass_a_frame_is_seen_beside_what_it_made_of_the_frame_itself():
    clip = clip_format(size=SIZE)
    run, other = run_of(clip, moving_luma(7)), run_of(clip, moving_luma(7) // 2)
    (beside,) = seen(clip, dataclasses.replace(run, first=other.sequence)).besides
    inside = (..., slice(0, SIZE[1]), slice(0, SIZE[0]))
    (expected,) = seen(clip, other).tiles
    assert beside.shape[2] == 5
    assert torch.allclose(beside[0, :, 0][inside], expected[0, 0][inside], atol=1e-6)


def test_with_a_first_pass_frames_without_a_neighbour_see_what_it_made_of_themselves():
    clip = clip_format(size=SIZE)
    run, other = run_of(clip, moving_luma(7)), run_of(clip, moving_luma(7) // 2)
    first, own = other.frames[0], run.frames[0]
    run = dataclasses.replace(run, before=(own, own), first=(first, first, *other.frames, *other.after))
    (beside,) = seen(clip, run).besides
    made = torch.from_numpy(first[0].astype(np.float32) - 16) / 219
    inside = (slice(0, SIZE[1]), slice(0, SIZE[0]))
    assert torch.allclose(beside[0, 0, 1][inside], made, atol=1e-6)
    assert torch.allclose(beside[0, 0, 3][inside], made, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("passes", [1, 2])
def test_training_shows_what_the_filter_shows(bits, first, passes):
    """Also at the ends of the item, where the filter repeats the nearest frame."""
    clip = clip_format(bits=bits, size=SIZE)
    luma = moving_luma(7, bits=bits)
    chroma = np.full((2, 7, SIZE[1] // 2, SIZE[0] // 2), 1 << (bits - 1), luma.dtype)
    pictures = Clip(luma, chroma, bits)
    qps = np.full(7, 37.0, np.float32)
    stream = DecodedStream(pictures, "hevc", 37.0, qps, True, "medium", "default", "cqp", False, 0, 0)
    made = moving_luma(7, (6, -2), bits)
    if passes == 2:
        stream = dataclasses.replace(stream, first=made)
    item = DecodedItem(0, pictures, (stream,), 1, (), ("a",))
    data = object.__new__(PoolDataset)
    data.neighbours, data.look_ahead, data.respect_cuts = 2, 0, True
    sample = data.sample_at(item, stream, first + 1, (8, 16), (96, 128))

    numbers = np.clip(np.arange(first - 2, first + 5), 0, 6)
    planes = {n: as_planes(clip, luma[n]) for n in set(numbers.tolist())}
    sequence = [planes[n] for n in numbers.tolist()]
    run = run_of(clip, luma[:7])
    run = dataclasses.replace(
        run, before=tuple(sequence[:2]), frames=tuple(sequence[2:5]), after=tuple(sequence[5:]), ahead=sequence[4]
    )
    if passes == 2:
        after = {n: as_planes(clip, made[n]) for n in set(numbers.tolist())}
        run = dataclasses.replace(run, first=tuple(after[n] for n in numbers.tolist()))
    (beside,) = seen(clip, run).besides
    assert sample.y_beside is not None
    shown = (sample.y_beside - 16 * 2 ** (bits - 8)) / (219 * 2 ** (bits - 8))
    assert np.allclose(shown, beside[0, :, :, 8:104, 16:144].numpy(), atol=1e-5)
