"""Pools of networks that see restored neighbours."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vsdiqp.errors import DiqpError
from vsdiqp.network import load_checkpoint, model_hash
from vsdiqp.training.dataset import DecodedItem
from vsdiqp.training.first_pass import FirstPass, open_pool

LITE = load_checkpoint("lite").config
SECOND = replace(LITE, name="second", first_pass="lite")


def gain(item: DecodedItem) -> float:
    """Mean PSNR gain of the first pass over all streams, in dB."""
    truth = item.source.y.astype(np.float64)
    gains = []
    for stream in item.degraded:
        assert stream.first is not None and stream.first.dtype == stream.clip.y.dtype
        before, after = (np.square(y - truth).mean() for y in (stream.clip.y, stream.first))
        gains.append(10 * np.log10(before / after))
    return float(np.mean(gains))


def test_streams_come_with_what_the_first_network_makes_of_them(small_pool: Path) -> None:
    pool = open_pool(small_pool, SECOND, "nominal", crop=(64, 64))
    items = [pool.load_item(index) for index in range(len(pool))]
    assert np.mean([gain(item) for item in items]) > 0.05
    assert all(stream.first is None for stream in open_pool(small_pool, LITE).load_item(0).degraded)
    sample = pool.sample(np.random.default_rng(0))
    assert sample.y_beside is not None and sample.y_beside.shape == (3, 7, 64, 64)


def test_the_first_pass_knows_scenes_and_its_own_groups(small_pool: Path) -> None:
    """Frames of one scene are restored as if there were no other."""
    made = FirstPass("lite", small_pool / "nowhere", "nominal")
    item = open_pool(small_pool, LITE, "nominal").load_item(0)
    stream = item.degraded[0]
    cut = replace(item, cuts=(3,))
    half = replace(stream.clip, y=stream.clip.y[3:], c=stream.clip.c[:, 3:])
    alone = replace(item, source=replace(item.source, y=item.source.y[3:], c=item.source.c[:, 3:]))
    whole = made._restore(cut, stream, nominal=True)
    second = made._restore(alone, replace(stream, clip=half, qps=stream.qps[3:]), nominal=True)
    assert np.array_equal(whole[3:], second)
    assert not np.array_equal(whole, made._restore(item, stream, nominal=True))


def test_what_was_restored_is_kept_and_read_again(small_pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_pool(small_pool, SECOND, "nominal").load_item(1)
    kept = sorted((small_pool / f"first-lite-{model_hash('lite')}").glob("1-*-nominal-*.npy"))
    assert len(kept) == len(first.degraded)

    def fails(*_: object) -> None:
        raise AssertionError("restored again")

    monkeypatch.setattr(FirstPass, "_restore", fails)
    again = open_pool(small_pool, SECOND, "nominal").load_item(1)
    for a, b in zip(first.degraded, again.degraded, strict=True):
        assert a.first is not None and b.first is not None and np.array_equal(a.first, b.first)
    assert again.nbytes > open_pool(small_pool, LITE).load_item(1).nbytes


def test_kept_files_that_are_damaged_or_of_other_streams_are_made_again(small_pool: Path) -> None:
    pool = open_pool(small_pool, SECOND, "nominal")
    item, made = pool.load_item(2), FirstPass("lite", small_pool, "nominal")
    stream = item.degraded[0]
    assert stream.first is not None
    (path,) = (small_pool / f"first-lite-{model_hash('lite')}").glob(f"2-{stream.number}-nominal-*.npy")
    path.write_bytes(path.read_bytes()[:1000])
    assert np.array_equal(made(item, stream), stream.first)
    other = replace(stream, clip=replace(stream.clip, y=255 - stream.clip.y))
    assert not np.array_equal(made(item, other), stream.first)


def test_threads_do_not_disturb_each_other(small_pool: Path, tmp_path: Path) -> None:
    items = [open_pool(small_pool, LITE, "nominal").load_item(index) for index in range(2)]
    for name in "ab":
        (tmp_path / name).mkdir()
    alone = [FirstPass("lite", tmp_path / "a", "nominal")(item, item.degraded[0]) for item in items]
    together = FirstPass("lite", tmp_path / "b", "nominal")
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda item: together(item, item.degraded[0]), items))
    assert all(np.array_equal(a, b) for a, b in zip(alone, found, strict=True))


def test_a_folder_that_cannot_be_written_to_is_named(small_pool: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    item = open_pool(small_pool, LITE, "nominal").load_item(0)
    with pytest.raises(DiqpError, match=r"cannot be kept in .*file"):
        FirstPass("lite", tmp_path / "file", "nominal")(item, item.degraded[0])
