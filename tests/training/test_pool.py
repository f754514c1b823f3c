import dataclasses
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from material import fill_sources, moving_clip, numbered, write_video

from vsdiqp.cli import main
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP
from vsdiqp.training.batches import Batches
from vsdiqp.training.dataset import PoolDataset, Sample
from vsdiqp.training.degrade import Clip, EncodeSettings, encode_lossless
from vsdiqp.training.pool import (
    ABOUT,
    INDEX,
    PoolSettings,
    PoolWriter,
    describe,
    draw_settings,
    generate,
    generate_plain,
    read_index,
)
from vsdiqp.training.settings import load_settings
from vsdiqp.training.sources import Library, Source, UnreadableError, find_sources
from vsdiqp.training.teacher import fit
from vsdiqp.training.validation import restored_streams

SMALL = PoolSettings(height=128, width=192, frames=5)
ALONE = dataclasses.replace(load_settings("lite", {"pool": "none"}).network, neighbours=0, joint=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    fill_sources(folder / "all", side=192)
    return folder / "all"


@pytest.fixture(scope="module")
def pool(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    assert generate(sources, folder, 6, seed=5, settings=SMALL) == 6
    return folder


def load_all(folder: Path) -> list[np.ndarray]:
    data = PoolDataset(folder)
    items = [data.load_item(index) for index in range(len(data))]
    return [plane for item in items for clip in (item.source, *(s.clip for s in item.degraded)) for plane in clip.y]


def test_items_hold_the_source_and_an_encode_by_each_codec(pool: Path) -> None:
    data = PoolDataset(pool)
    assert len(data) == 6
    for index in range(6):
        item = data.load_item(index)
        assert item.source.y.shape == (5, 128, 192)
        assert [stream.codec for stream in item.degraded] == ["hevc", "av1"]
        for stream in item.degraded:
            assert stream.clip.y.shape == item.source.y.shape
            assert stream.clip.bits == item.source.bits
            assert stream.qps.shape == (5,)
            error = np.abs(stream.clip.y.astype(float) - item.source.y).mean() / (1 << (item.source.bits - 8))
            assert 0 < error < 40


def test_a_pool_continues_where_it_ended_and_equals_one_made_at_once(sources: Path, pool: Path, tmp_path: Path) -> None:
    generate(sources, tmp_path, 2, seed=5, settings=SMALL)
    # a kill while a line was being written
    with open(tmp_path / INDEX, "ab") as file:
        file.write(b'{"item":2,"fra')
    assert len(PoolDataset(tmp_path)) == 2
    assert generate(sources, tmp_path, 6, seed=5, settings=SMALL) == 4
    assert [entry["item"] for entry in read_index(tmp_path)] == list(range(6))
    assert all(np.array_equal(a, b) for a, b in zip(load_all(tmp_path), load_all(pool), strict=True))
    assert generate(sources, tmp_path, 6, seed=5, settings=SMALL) == 0


@pytest.mark.slow
def test_several_processes_make_the_same_pool(sources: Path, pool: Path, tmp_path: Path) -> None:
    generate(sources, tmp_path, 4, seed=5, processes=2, settings=SMALL)
    ours, theirs = load_all(tmp_path), load_all(pool)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs[: len(ours)], strict=True))


@pytest.mark.slow
def test_a_killed_process_ends_it_with_what_was_made_kept(sources: Path, pool: Path, tmp_path: Path) -> None:
    def kill(have: int, _: int) -> None:
        if have == 1:
            multiprocessing.active_children()[0].kill()

    with pytest.raises(DiqpError, match="--processes"):
        generate(sources, tmp_path, 200, seed=5, processes=2, settings=SMALL, progress=kill)
    have = len(PoolDataset(tmp_path))
    assert 1 <= have < 200
    assert generate(sources, tmp_path, have + 1, seed=5, settings=SMALL) == 1
    assert all(np.array_equal(a, b) for a, b in zip(load_all(tmp_path), load_all(pool), strict=False))


def test_other_seeds_make_other_items(sources: Path, pool: Path, tmp_path: Path) -> None:
    generate(sources, tmp_path, 1, seed=6, settings=SMALL)
    assert not np.array_equal(load_all(tmp_path)[0], load_all(pool)[0])


def test_one_writer_at_a_time(sources: Path, tmp_path: Path) -> None:
    with PoolWriter(tmp_path).open(), pytest.raises(DiqpError, match="another process"):
        generate(sources, tmp_path, 1)


def test_some_items_show_what_no_camera_took(sources: Path, tmp_path: Path) -> None:
    generate(sources, tmp_path / "drawn", 3, settings=dataclasses.replace(SMALL, drawn=1.0))
    generate(sources, tmp_path / "taken", 3, settings=dataclasses.replace(SMALL, drawn=0.0))
    assert all(entry["sources"][0].startswith("drawn: ") for entry in read_index(tmp_path / "drawn"))
    assert not any(name.startswith("drawn: ") for e in read_index(tmp_path / "taken") for name in e["sources"])
    assert PoolDataset(tmp_path / "drawn").load_item(2).source.y.shape == (5, 128, 192)


def test_training_takes_up_new_items(tmp_path: Path) -> None:
    def item(number: int) -> None:
        about = {"item": number, "seed": 0, "sources": ["x"], "matrix": 1, "cuts": []}
        with PoolWriter(tmp_path).open() as writer:
            writer.add(describe(moving_clip(5), 1, 3, [EncodeSettings("hevc", 30)], about))

    item(0)
    data = PoolDataset(tmp_path)
    item(1)
    item(2)
    assert (len(data), data.refresh(), len(data), data.refresh()) == (1, 2, 3, 0)
    assert np.array_equal(data.load_item(2).source.y, moving_clip(5).y[1:4])


def test_samples_are_aligned_triplets_of_the_item(pool: Path) -> None:
    data = PoolDataset(pool, crop=(32, 64), align=16, look_ahead=1, qp="frames", respect_cuts=False)
    rng = np.random.default_rng(0)
    for _ in range(60):
        index = int(rng.integers(len(data)))
        item = data.load_item(index)
        sample = data.cut(item, rng)
        assert sample.y.shape == sample.y_true.shape == (3, 32, 64)
        assert sample.c.shape == sample.c_true.shape == (2, 3, 16, 32)
        assert sample.top % 16 == sample.left % 16 == 0
        stream = next(stream for stream in item.degraded if stream.codec == sample.codec)
        rows, columns = slice(sample.top, sample.top + 32), slice(sample.left, sample.left + 64)
        frames = slice(sample.middle - 1, sample.middle + 2)
        assert np.array_equal(sample.y, stream.clip.y[frames, rows, columns])
        assert np.array_equal(sample.y_true, item.source.y[frames, rows, columns])
        half = slice(sample.top // 2, sample.top // 2 + 16), slice(sample.left // 2, sample.left // 2 + 32)
        assert np.array_equal(sample.c_true, item.source.c[:, frames, half[0], half[1]])
        assert np.array_equal(sample.y_whole, stream.clip.y[frames])
        assert np.array_equal(sample.y_ahead, stream.clip.y[min(sample.middle + 2, 4)])
        assert sample.qp == pytest.approx(float(stream.qps[frames].mean()))


def test_same_seed_same_samples(pool: Path) -> None:
    def first(seed: int) -> list[Sample]:
        stream = PoolDataset(pool, crop=(32, 32)).samples(seed)
        return [next(stream) for _ in range(5)]

    assert all(np.array_equal(a.y, b.y) and a.qp == b.qp for a, b in zip(first(1), first(1), strict=True))
    assert not all(np.array_equal(a.y, b.y) for a, b in zip(first(1), first(2), strict=True))


def cut_pool(folder: Path) -> PoolDataset:
    about = {"item": 0, "seed": 0, "sources": ["x"], "matrix": 1, "cuts": [3]}
    with PoolWriter(folder).open() as writer:
        writer.add(describe(moving_clip(7), 0, 7, [EncodeSettings("hevc", 30)], about))
    return PoolDataset(folder, look_ahead=2)


def test_nothing_of_the_other_side_of_a_cut_is_used(tmp_path: Path) -> None:
    data = cut_pool(tmp_path)
    item = data.load_item(0)
    stream = item.degraded[0]
    y = stream.clip.y
    before = data.sample_at(item, stream, 2, (0, 0), (64, 64))
    assert np.array_equal(before.y, y[[1, 2, 2]])
    assert np.array_equal(before.y_true, item.source.y[[1, 2, 2]])
    assert np.array_equal(before.y_ahead, y[2])
    after = data.sample_at(item, stream, 3, (0, 0), (64, 64))
    assert np.array_equal(after.y, y[[3, 3, 4]])
    assert np.array_equal(after.y_ahead, y[6])
    data.respect_cuts = False
    assert np.array_equal(data.sample_at(item, stream, 3, (0, 0), (64, 64)).y, y[2:5])


def test_most_triplets_have_all_their_neighbours(tmp_path: Path) -> None:
    about = {"item": 0, "seed": 0, "sources": ["x"], "matrix": 1, "cuts": [2]}
    with PoolWriter(tmp_path).open() as writer:
        writer.add(describe(moving_clip(13), 0, 13, [EncodeSettings("hevc", 30)], about))
    data = PoolDataset(tmp_path, crop=(32, 32), neighbours=2)
    item, rng = data.load_item(0), np.random.default_rng(0)
    middles = [data.cut(item, rng).middle for _ in range(200)]
    assert 0.75 < np.isin(middles, range(2 + 3, 12 - 2)).mean() < 1, "some lie at the ends, as in a real video"


def odd_pool(folder: Path, *clips: Clip) -> PoolDataset:
    """An item of each clip, as older versions made them."""
    with PoolWriter(folder).open() as writer:
        for number, clip in enumerate(clips):
            about = {"item": number, "seed": 0, "sources": ["x"], "matrix": 1, "cuts": []}
            writer.add(describe(clip, 0, clip.frames, [EncodeSettings("hevc", 40)], about))
    return PoolDataset(folder)


def test_items_that_are_shorter_than_a_triplet_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = odd_pool(tmp_path / "some", moving_clip(2), moving_clip(4), moving_clip(1))
    assert [entry["item"] for entry in data.entries] == [1]
    assert "fewer than 3 frames" in caplog.text
    rng = np.random.default_rng(0)
    assert all(data.sample(rng).frames == 4 for _ in range(5))
    fit(data, 3)
    with pytest.raises(DiqpError, match="no items of 3 frames or more"):
        odd_pool(tmp_path / "none", moving_clip(2))


def test_validation_leaves_out_items_that_hold_no_tile(tmp_path: Path) -> None:
    network = DiQP(ALONE)
    side = ALONE.multiple
    data = odd_pool(tmp_path / "some", moving_clip(4, side - 2), moving_clip(4, side + 2))
    shapes = [seen.tile.shape[-2:] for seen in restored_streams(network, data, torch.device("cpu"), "fp32")]
    assert shapes == [(side, side)]


def test_errors_belong_to_the_frames_shown(tmp_path: Path) -> None:
    data = cut_pool(tmp_path)
    batches = Batches(data, DiQP(ALONE), 8, seed=0, refresh_every=100)
    errors = batches.stream_error(data.load_item(0), 0)
    shown = {str(errors[:, list(s.shown)].tolist()) for s in (data.sample(np.random.default_rng(i)) for i in range(50))}
    assert {str(row) for row in batches.make().error.tolist()} <= shown


def test_nominal_qp_is_what_a_user_would_type(pool: Path) -> None:
    data = PoolDataset(pool, codecs=["av1"], crop=(32, 32), qp="nominal")
    rng = np.random.default_rng(0)
    for index in range(len(data)):
        item = data.load_item(index)
        stream = item.degraded[0]
        sample = data.cut(item, rng)
        assert sample.codec == "av1"
        if stream.constant:
            assert sample.qp == stream.nominal
        else:
            assert sample.qp in {pytest.approx(float(stream.qps[n : n + 3].mean())) for n in range(3)}


def test_memory_stays_within_its_bound(pool: Path) -> None:
    size = PoolDataset(pool).load_item(0).nbytes
    data = PoolDataset(pool, cache_bytes=2 * size)
    for index in list(range(6)) * 2:
        data.load_item(index)
    kept, held = data.cached
    assert 1 <= kept <= 2 and held <= 2 * size
    assert PoolDataset(pool, cache_bytes=0).load_item(1).number == 1


def test_the_bound_counts_the_motion_that_is_kept(pool: Path) -> None:
    data = PoolDataset(pool, neighbours=2, crop=(64, 64))
    item = data.load_item(0)
    for stream in item.degraded:
        stream.motion.learn(stream.clip.y, item.source.bits, 2)
    vectors = sum(v.nbytes for stream in item.degraded for v in (stream.motion.known or {}).values())
    assert vectors > 0 and data.cached == (1, item.nbytes + vectors)


def test_drawn_settings_are_mostly_the_common_ones_over_the_whole_range() -> None:
    rng = np.random.default_rng(0)
    for codec, low, high, preset in (("hevc", 12, 51, "medium"), ("av1", 40, 255, "6")):
        drawn = [draw_settings(codec, rng) for _ in range(1500)]
        common = [s for s in drawn if (s.mode, s.preset, s.gop, s.tune) == ("cqp", preset, "default", "default")]
        assert 0.65 < len(common) / len(drawn) < 0.8
        assert all(low <= s.qp <= high for s in drawn)
        assert min(s.qp for s in drawn) < low + 5 and max(s.qp for s in drawn) == high
        assert {s.mode for s in drawn} == {"cqp", "crf", "aq"}
        assert 0.1 < sum(s.flat for s in common) / len(common) < 0.5


def test_validation_pools_keep_samples_untouched(tmp_path: Path) -> None:
    fill_sources(tmp_path / "videos", side=96)
    encodes = (EncodeSettings("hevc", 37), EncodeSettings("av1", 153))
    assert generate_plain(tmp_path / "videos", tmp_path / "dev", 2, 1, SMALL, encodes) == 2
    assert generate_plain(tmp_path / "videos", tmp_path / "dev", 2, 1, SMALL, encodes) == 0
    clip = moving_clip(12, 96, seed=3)
    data = PoolDataset(tmp_path / "dev")
    for index in range(2):
        item, entry = data.load_item(index), data.entries[index]
        assert [(s.codec, s.nominal) for s in item.degraded] == [("hevc", 37), ("av1", 153)]
        top, left = entry["crop"]
        # the video is smaller than the items asked for
        window = clip.y[:, top : top + 96, left : left + 96]
        first = item.degraded[0].position
        assert np.array_equal(item.source.y, window[first : first + 5])


ONE = (EncodeSettings("hevc", 37),)


def test_validation_pools_show_videos_from_all_their_length(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "a.mkv", numbered(400))
    assert generate_plain(tmp_path / "videos", tmp_path / "dev", 8, 0, SMALL, ONE) == 8
    data = PoolDataset(tmp_path / "dev")
    seen = [2 * (int(data.load_item(index).source.y[0, 0, 0]) - 20) for index in range(8)]
    assert len(set(seen)) >= 6 and max(seen) > 250
    for shown, entry in zip(seen, data.entries, strict=True):
        assert 0 <= shown - entry["start"] <= 64


def test_videos_that_can_not_validate_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, clip in (
        ("one", moving_clip(1)),
        ("two", moving_clip(2)),
        ("small", moving_clip(5, 60)),
        ("good", moving_clip(3)),
    ):
        (videos / f"{name}.mkv").write_bytes(encode_lossless(clip))
    write_video(videos / "rgb.mkv", moving_clip(5), "ffv1", {}, pixel_format="yuv444p")
    assert generate_plain(videos, tmp_path / "dev", 2, 0, SMALL, ONE) == 2
    assert {entry["sources"][0] for entry in read_index(tmp_path / "dev")} == {"good.mkv"}
    for name, why in (("one", "1 frames"), ("two", "2 frames"), ("small", "60x60"), ("rgb", "yuv444p")):
        assert any(f"{name}.mkv" in r.getMessage() and why in r.getMessage() for r in caplog.records)
    (videos / "good.mkv").unlink()
    with pytest.raises(DiqpError, match="no videos that a validation pool can be made from"):
        generate_plain(videos, tmp_path / "other", 2, 0, SMALL, ONE)


def test_a_validation_pool_of_stills_is_an_error(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pool", "--plain", str(sources / "stills"), str(tmp_path / "dev")]) == 1
    assert "holds no videos" in capsys.readouterr().err


def test_a_validation_pool_goes_on_behind_a_video_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        write_video(tmp_path / "videos" / f"{name}.mkv", moving_clip(5))
    planes = Library.planes

    def failing(library: Library, source: Source, *rest: Any) -> Clip:
        if source.name == "b.mkv":
            raise UnreadableError("b.mkv can't be read")
        return planes(library, source, *rest)

    monkeypatch.setattr(Library, "planes", failing)
    assert generate_plain(tmp_path / "videos", tmp_path / "dev", 1, 0, SMALL, ONE) == 2
    assert [entry["item"] for entry in read_index(tmp_path / "dev")] == [0, 2]
    assert generate_plain(tmp_path / "videos", tmp_path / "dev", 1, 0, SMALL, ONE) == 0


def test_a_validation_pool_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    videos, dev = tmp_path / "videos", tmp_path / "dev"
    fill_sources(videos)
    generate_plain(videos, dev, 1, 0, SMALL, ONE)
    for other, text in (
        ({"encodes": (EncodeSettings("hevc", 22),)}, "encodes was hevc=37, is hevc=22"),
        ({"crops": 2}, "crops was 1, is 2"),
        ({"seed": 1}, "seed was 0, is 1"),
    ):
        given = {"crops": 1, "seed": 0, "settings": SMALL, "encodes": ONE, **other}
        with pytest.raises(DiqpError, match=f"{text}.*another folder$"):
            generate_plain(videos, dev, **given)  # type: ignore[arg-type]
    (videos / "another.mkv").write_bytes(encode_lossless(moving_clip(5)))
    with pytest.raises(DiqpError, match=r"new among the sources: another\.mkv"):
        generate_plain(videos, dev, 1, 0, SMALL, ONE)
    with pytest.raises(DiqpError, match="is a validation pool"):
        generate(videos, dev, 5, settings=SMALL, changed=True)
    (dev / ABOUT).unlink()
    with pytest.raises(DiqpError, match="is a validation pool"):
        generate(videos, dev, 5, settings=SMALL)
    assert len(read_index(dev)) == 1


def test_a_training_pool_goes_on_as_it_was_begun_or_is_told_to_change(tmp_path: Path) -> None:
    folder, pool = tmp_path / "sources", tmp_path / "pool"
    fill_sources(folder)
    generate(folder, pool, 1, settings=SMALL)
    assert json.loads((pool / ABOUT).read_text())["sources"]["clip.mkv"] == "96x96"
    (folder / "stills" / "1.png").unlink()
    other = dataclasses.replace(SMALL, drawn=0.5)
    with pytest.raises(DiqpError, match=r"drawn was 0\.06, is 0\.5; gone from the sources: stills/1\.png.*--changed"):
        generate(folder, pool, 2, settings=other)
    with pytest.raises(DiqpError, match="is a training pool"):
        generate_plain(folder, pool, 1, 0, SMALL, ONE)
    assert generate(folder, pool, 2, settings=other, changed=True) == 1
    assert generate(folder, pool, 3, settings=other) == 1, "it goes on as it was changed"


def test_sources_are_looked_into_once(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []

    def noting(folder: Path) -> list[Source]:
        looked.append(folder)
        return find_sources(folder)

    monkeypatch.setattr("vsdiqp.training.pool.find_sources", noting)
    generate(sources, tmp_path, 1, settings=SMALL)
    assert looked == [sources]


def test_a_validation_pool_can_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", "--plain", "--changed", str(tmp_path), str(tmp_path / "dev")]) == 1
    assert "--changed is for training pools" in capsys.readouterr().err


def test_older_pools_go_on(sources: Path, tmp_path: Path) -> None:
    generate(sources, tmp_path, 1, seed=5, settings=SMALL)
    (tmp_path / ABOUT).unlink()
    assert generate(sources, tmp_path, 2, seed=6, settings=SMALL) == 1
    assert not (tmp_path / ABOUT).exists(), "nobody knows what it was made from"


def test_a_damaged_description_is_an_error(sources: Path, tmp_path: Path) -> None:
    generate(sources, tmp_path, 1, seed=5, settings=SMALL)
    for text in ("{", "[]", "{}"):
        (tmp_path / ABOUT).write_text(text)
        with pytest.raises(DiqpError, match=r"pool\.json is damaged"):
            generate(sources, tmp_path, 2, seed=5, settings=SMALL)


def test_errors_say_what_to_do(tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DiqpError, match="multiples of 64"):
        PoolSettings(height=100)
    with pytest.raises(DiqpError, match=r"share of drawn items is 1\.5; it must be 0 to 1"):
        PoolSettings(drawn=1.5)
    with pytest.raises(DiqpError, match="vsdiqp pool"):
        PoolDataset(tmp_path)
    with pytest.raises(DiqpError, match="frames, nominal or mixed"):
        PoolDataset(pool, qp="best")
    (tmp_path / INDEX).write_text("not json\n")
    with pytest.raises(DiqpError, match="damaged line"):
        PoolDataset(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["pool", str(tmp_path / "empty"), str(tmp_path / "out")]) == 1
    assert "holds no stills or videos" in capsys.readouterr().err
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mkv").write_bytes(b"nothing")
    assert main(["pool", str(tmp_path / "broken"), str(tmp_path / "out")]) == 1
    assert "a.mkv" in capsys.readouterr().err


def test_items_may_be_of_another_size(sources: Path, tmp_path: Path) -> None:
    command = ["pool", str(sources), str(tmp_path), "--items", "1", "--size", "128", "--frames", "5"]
    assert main(command) == 0
    assert PoolDataset(tmp_path).load_item(0).source.y.shape[1:] == (128, 128)


def test_a_stream_file_cut_short_is_an_error(sources: Path, tmp_path: Path) -> None:
    generate(sources, tmp_path, 1, settings=SMALL)
    path = tmp_path / "streams-0000.bin"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DiqpError, match="shorter than"):
        PoolDataset(tmp_path).load_item(0)


@pytest.mark.slow
def test_the_command_shows_progress_on_stderr_alone(sources: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vsdiqp", "pool", str(sources), str(tmp_path / "pool"), "--items", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "[1/1]" in done.stderr and "items" in done.stderr
    line = (tmp_path / "pool" / INDEX).read_text()
    assert json.loads(line)["height"] == 256
