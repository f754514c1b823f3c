"""The pool: a folder of short clips with their real encodes, made ahead of training or beside it.

Layout: ``index.jsonl`` has one line an item; the streams lie in ``streams-NNNN.bin``, each at the offset and length
that the line gives. Streams are written before their line, so a reader never meets a half-written item and a kill
costs at most the item in work. ``pool.json`` says what decides the items: a pool goes on only with the same. Item k of
seed s is the same wherever it is made.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsdiqp.errors import DiqpError
from vsdiqp.training.degrade import (
    AV1_GOPS,
    AV1_TUNES,
    HEVC_GOPS,
    HEVC_TUNES,
    Clip,
    EncodeSettings,
    encode,
    encode_lossless,
)
from vsdiqp.training.locks import held
from vsdiqp.training.processes import ProcessDiedError, in_processes
from vsdiqp.training.sources import FEWEST, Library, Source, UnreadableError, Window, find_sources, warn_once

_log = logging.getLogger("vsdiqp")

INDEX = "index.jsonl"
ABOUT = "pool.json"
SMALLEST = 64
"""Shortest side of a video that validates."""
_STREAM_FILE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What items look like. Sides are multiples of 64, the coding grid of HEVC and AV1, and 128 at least.

    x265's encodes of smaller pictures differ from run to run.
    """

    height: int = 256
    width: int = 256
    frames: int = 15
    """Frames kept of each clip, 5 + 2K or more for networks with K neighbours; the encodes that they come from are up
    to 24 frames longer, as pyramids need."""
    codecs: tuple[str, ...] = ("hevc", "av1")
    ten_bit: float = 0.1
    """Share of 10-bit items."""
    drawn: float = 0.06
    """Share of items that show what no camera took (`vsdiqp.training.drawn`)."""

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        if self.height % 64 or self.width % 64 or min(self.height, self.width) < 128:
            raise DiqpError(f"items are {self.width}x{self.height}; both sides must be multiples of 64, from 128 on")
        if not 0 <= self.drawn <= 1:
            raise DiqpError(f"the share of drawn items is {self.drawn}; it must be 0 to 1")
        if self.frames < FEWEST:
            raise DiqpError(f"items have {self.frames} frames; a triplet needs {FEWEST} or more")


@dataclass(frozen=True, slots=True)
class Item:
    """One item before it's stored: its index entry, and streams in the order the entry names them."""

    entry: dict[str, Any]
    streams: tuple[bytes, ...]


def draw_settings(codec: str, rng: np.random.Generator) -> EncodeSettings:
    """Random encoder settings: 70 % as x265 medium and SVT-AV1 preset 6 do constant QP, else what users also do."""
    qp = _draw_hevc_qp(rng) if codec == "hevc" else _draw_av1_qp(rng)
    mode, gop, preset, tune = "cqp", "default", "medium" if codec == "hevc" else "6", "default"
    flat = rng.random() < (0.2 if codec == "hevc" else 0.35)
    if rng.random() < 0.3:
        other = rng.random()
        if other < 0.45:
            mode, flat = str(rng.choice(("crf", "aq"))), False
        if 0.3 < other < 0.75:
            presets = ("veryfast", "faster", "fast", "slow") if codec == "hevc" else ("4", "8", "8", "10", "12")
            preset = str(rng.choice(presets))
        if other > 0.6:
            gops = HEVC_GOPS if codec == "hevc" else AV1_GOPS
            gop = str(rng.choice([name for name in gops if name != "intra" or rng.random() < 0.3]))
        if rng.random() < 0.3:
            tune = str(rng.choice(list(HEVC_TUNES if codec == "hevc" else AV1_TUNES)))
        if mode != "cqp":
            # A rate factor gives frames coarser quantisers than its number, most of all in x265.
            qp = min(qp, 40.0 if codec == "hevc" else 240.0)
    return EncodeSettings(codec, qp, mode, preset, gop, flat, tune)


def _draw_hevc_qp(rng: np.random.Generator) -> float:
    part = rng.random()
    low, high = (22, 45) if part < 0.77 else (12, 21) if part < 0.89 else (46, 51)
    return float(rng.integers(low, high + 1))


def _draw_av1_qp(rng: np.random.Generator) -> float:
    part = rng.random()
    if part < 0.08:
        return float(rng.choice((102, 153, 204, 255)))
    low, high = (80, 255) if part < 0.9 else (40, 79)
    return float(rng.integers(low, high + 1))


def make_item(
    index: int, seed: int, sources: list[Source], library: Library, settings: PoolSettings | None = None
) -> Item:
    """Render, encode and describe item ``index``; nothing but the arguments decides what it is."""
    from vsdiqp.training.camera import Shot, render, to_yuv420
    from vsdiqp.training.drawn import draw

    settings = settings or PoolSettings()
    rng = np.random.default_rng([seed, index])
    length = settings.frames + 8 * int(rng.choice(4, p=(0.15, 0.45, 0.2, 0.2)))
    size = (settings.height, settings.width)
    if rng.random() < settings.drawn:
        picture, kind = draw(size, length, rng)
        shot = Shot(picture, sources=[f"drawn: {kind}"])
    else:
        shot = render(sources, library, size, length, rng)
    matrix = 1 if rng.random() < 0.75 else 6
    bits = 10 if rng.random() < settings.ten_bit else 8
    clip = to_yuv420(shot.rgb, matrix, bits)
    kept = min(settings.frames, clip.frames)
    first = int(rng.integers(clip.frames - kept + 1))
    if rng.random() < 0.1:
        first = 0  # the keyframe and its followers, which long encodes have few of
    encodes = [draw_settings(codec, rng) for codec in settings.codecs]
    about = {
        "item": index,
        "seed": seed,
        "sources": shot.sources,
        "matrix": matrix,
        "cuts": [cut - first for cut in shot.cuts if 0 < cut - first < kept],
    }
    return describe(clip, first, kept, encodes, about)


def describe(clip: Clip, first: int, kept: int, encodes: list[EncodeSettings], about: dict[str, Any]) -> Item:
    """Encode the whole clip with each of the settings and describe frames ``first .. first+kept-1`` as an item."""
    window = clip.cut(first, kept)
    streams = [encode_lossless(window)]
    degraded = []
    for settings in encodes:
        encoded = encode(clip, settings)
        streams.append(encoded.data)
        here = slice(first, first + kept)
        qps = {"qps": encoded.qps[here], "mean_qps": [round(qp, 2) for qp in encoded.mean_qps[here]]}
        degraded.append({**asdict(settings), "bits": clip.bits, "first": first, "frames": clip.frames, **qps})
    entry = {
        **about,
        "height": clip.y.shape[1],
        "width": clip.y.shape[2],
        "frames": kept,
        "bits": clip.bits,
        "range": "limited",
        "chroma_location": 0,
        "degraded": degraded,
    }
    return Item(entry, tuple(streams))


class PoolWriter:
    """Appends items to a pool folder; only one writer a folder at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def open(self) -> Iterator["PoolWriter"]:
        """Hold the folder for writing. Raises DiqpError when another process does."""
        taken = f"{self._folder} is being written by another process; wait for it or give another folder"
        with held(self._folder, taken):
            self._drop_torn_line()
            yield self

    def begin(self, about: dict[str, Any], changed: bool = False) -> list[dict[str, Any]]:
        """Index entries of a pool that is to go on as ``about`` says; a pool without items is begun as that.

        ``changed``: of a training pool, all but its kind may be other than before. Raises DiqpError for what differs.
        """
        entries = read_index(self._folder)
        about = json.loads(json.dumps(about))  # as it's read: lists, not tuples
        before = _read_about(self._folder, entries) if entries else None
        if before is not None:
            _check_same(self._folder, before, about, changed)
        if not entries or (changed and before != about):
            partial = self._folder / f"{ABOUT}.partial"
            partial.write_text(json.dumps(about, indent=1) + "\n")
            partial.replace(self._folder / ABOUT)
        return entries

    def add(self, item: Item) -> None:
        """Append one item: its streams, then its line."""
        entry = dict(item.entry)
        path, places = self._append_streams(item.streams)
        entry["file"] = path
        entry["source"] = places[0]
        entry["degraded"] = [
            {**degraded, "stream": place} for degraded, place in zip(entry["degraded"], places[1:], strict=True)
        ]
        with open(self._folder / INDEX, "ab") as index:
            index.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def _append_streams(self, streams: tuple[bytes, ...]) -> tuple[str, list[list[int]]]:
        number = 0
        while (self._folder / _stream_name(number + 1)).exists():
            number += 1
        path = self._folder / _stream_name(number)
        if path.exists() and path.stat().st_size >= _STREAM_FILE_BYTES:
            path = self._folder / _stream_name(number + 1)
        places = []
        with open(path, "ab") as file:
            for stream in streams:
                places.append([file.tell(), len(stream)])
                file.write(stream)
            file.flush()
            os.fsync(file.fileno())
        return path.name, places

    def _drop_torn_line(self) -> None:
        path = self._folder / INDEX
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with open(path, "r+b") as file:
                file.truncate(whole)


def _describe_pool(kind: str, seed: int, sources: Sequence[Source], **more: Any) -> dict[str, Any]:
    """What decides the items of a pool, as ``pool.json`` has it."""
    sizes = {source.name: f"{source.width}x{source.height}" for source in sources}
    return {"kind": kind, "seed": seed, **more, "sources": sizes}


def _read_about(folder: Path, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``pool.json`` says. Of older pools, which have none, the kind alone is known."""
    path = folder / ABOUT
    if not path.exists():
        return {"kind": "validation" if "crop" in entries[0] else "training"}
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        about["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise DiqpError(
            f"{path} is damaged ({error}); give another folder, or delete the file if you know it"
        ) from error
    return about


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any], changed: bool) -> None:
    if before["kind"] != now["kind"]:
        raise DiqpError(
            f"{folder} is a {before['kind']} pool; {now['kind']} items must not be mixed into it: give another folder"
        )
    if changed and now["kind"] == "training":
        return
    # What an older or newer version doesn't know is no difference.
    names = [name for name in now if name in before and name != "sources" and before[name] != now[name]]
    differs = [f"{name} was {_shown(before[name])}, is {_shown(now[name])}" for name in names]
    old, new = before.get("sources", now["sources"]), now["sources"]
    for text, files in (
        ("new among the sources", new.keys() - old.keys()),
        ("gone from the sources", old.keys() - new.keys()),
        ("of another size", {name for name in new.keys() & old.keys() if new[name] != old[name]}),
    ):
        if files:
            differs.append(f"{text}: {', '.join(sorted(files)[:3])}{' and others' if len(files) > 3 else ''}")
    if differs:
        way = ", or --changed to make the items to come by what is given now" if now["kind"] == "training" else ""
        raise DiqpError(
            f"{folder} was begun differently ({'; '.join(differs)}); give what was given, another folder{way}"
        )


def _shown(value: Any) -> str:
    """A value of ``pool.json`` as an error shows it: of encodes the codecs and QPs."""
    if isinstance(value, list):
        return " ".join(f"{v['codec']}={v['qp']:g}" if isinstance(v, dict) else str(v) for v in value)
    return str(value)


def _stream_name(number: int) -> str:
    return f"streams-{number:04d}.bin"


def read_index(folder: Path) -> list[dict[str, Any]]:
    """All index entries. Raises DiqpError for a damaged line."""
    return read_index_from(folder, 0)[0]


def read_index_from(folder: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The index entries from byte ``offset`` on, and the offset behind them; a line still being written is left."""
    path = folder / INDEX
    if not path.exists():
        return [], offset
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data.rfind(b"\n") + 1
    try:
        return [json.loads(line) for line in data[:whole].splitlines()], offset + whole
    except json.JSONDecodeError as error:
        raise DiqpError(f"{path} has a damaged line ({error}); delete the line or make the pool anew") from error


def read_stream(folder: Path, entry: dict[str, Any], place: list[int]) -> bytes:
    """The bytes of one stream of an item. Raises DiqpError when the file is shorter than the index says."""
    path = folder / str(entry["file"])
    with open(path, "rb") as file:
        file.seek(place[0])
        data = file.read(place[1])
    if len(data) != place[1]:
        raise DiqpError(f"{path} is shorter than {folder / INDEX} says; copy it again or make the pool anew")
    return data


def generate(
    folder: Path,
    out: Path,
    count: int,
    seed: int = 0,
    processes: int = 1,
    settings: PoolSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
    changed: bool = False,
) -> int:
    """Fill pool ``out`` from the material in ``folder`` up to ``count`` items; returns how many were added.

    A pool that has some items already goes on behind them. It must have been begun with the same material, seed and
    settings, unless ``changed`` says that it may go on with others. ``progress`` is called with items there and items
    wanted.
    """
    settings = settings or PoolSettings()
    sources = find_sources(folder)
    writer = PoolWriter(out)
    with writer.open():
        have = len(writer.begin(_describe_pool("training", seed, sources, **asdict(settings)), changed))
        added = 0
        for item in _items(range(have, count), _Maker(sources, seed, settings), processes):
            writer.add(item)
            added += 1
            if progress is not None:
                progress(have + added, count)
    return added


def _items(indices: range, begin: "_Maker", processes: int) -> Iterator[Item]:
    if processes <= 1:
        make = begin(0)
        yield from (item for _, item in map(make, indices))
        return
    made: dict[int, Item] = {}
    behind = indices.start
    found = in_processes(begin, indices, processes)
    try:
        with contextlib.closing(found):
            for index, item in found:
                made[index] = item
                while behind in made:
                    yield made.pop(behind)
                    behind += 1
    except ProcessDiedError as error:
        raise DiqpError(
            f"a process that makes items died ({error}); the same command goes on behind the items that are there. If "
            "memory ran out, let fewer processes make them (--processes)"
        ) from None


PLAIN_QPS: Mapping[str, Sequence[float]] = {"hevc": (27, 32, 37, 42), "av1": (102, 153, 204, 255)}
"""QPs of a validation pool."""


def plain_encodes(qps: Mapping[str, Sequence[float]]) -> tuple[EncodeSettings, ...]:
    """Constant QP as validation wants it: x265 medium and SVT-AV1 preset 6 with their usual frame offsets."""
    presets = {"hevc": "medium", "av1": "6"}
    return tuple(EncodeSettings(codec, qp, preset=presets[codec]) for codec in qps for qp in qps[codec])


def generate_plain(
    folder: Path,
    out: Path,
    crops: int,
    seed: int = 0,
    settings: PoolSettings | None = None,
    encodes: tuple[EncodeSettings, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """A validation pool: ``crops`` places in each video of ``folder``, untouched samples, each of ``encodes`` on all.

    Without ``encodes`` they are those of PLAIN_QPS.
    Of a long video 64 frames from anywhere in it are encoded, else all, and the frames that are kept lie anywhere in
    these. Videos that can't validate are left out with a warning: fewer than 3 frames, a side below 64, other than
    4:2:0. A pool with some of these items already goes on behind them; returns how many were added. Raises DiqpError
    when there is nothing to make them from, and for a pool that was begun differently.
    """
    settings, encodes = settings or PoolSettings(), encodes or plain_encodes(PLAIN_QPS)
    videos = [source for source in find_sources(folder) if not source.still and _validates(source)]
    if not videos:
        raise DiqpError(
            f"{folder} holds no videos that a validation pool can be made from; give 4:2:0 ones of {FEWEST} frames and "
            f"{SMALLEST}x{SMALLEST} or more"
        )
    shape = {"height": settings.height, "width": settings.width, "frames": settings.frames}
    known = [asdict(encode) for encode in encodes]
    about = _describe_pool("validation", seed, videos, **shape, crops=crops, encodes=known)
    places = [video for video in videos for _ in range(crops)]
    library = Library()
    writer = PoolWriter(out)
    with writer.open():
        entries = writer.begin(about)
        # Not their number: places that can't be read have none.
        begin = int(entries[-1]["item"]) + 1 if entries else 0
        added = 0
        for index in range(begin, len(places)):
            try:
                writer.add(_plain_item(index, seed, places[index], library, settings, encodes))
                added += 1
            except UnreadableError as error:
                warn_once(f"{error}; it is left out")
            if progress is not None:
                progress(index + 1, len(places))
    if not entries and not added:
        raise DiqpError(f"none of the videos in {folder} can be read; see the warnings, and convert them")
    return added


def _validates(video: Source) -> bool:
    """Whether a validation pool can be made from a video; if not, a warning says why."""
    why = ""
    if video.frames < FEWEST:
        why = f"it has {video.frames} frames, and a triplet needs {FEWEST}"
    elif min(video.width, video.height) < SMALLEST:
        why = f"it is {video.width}x{video.height}, and {SMALLEST}x{SMALLEST} are needed"
    elif not video.planar:
        why = f"it is {video.pixel_format}, and samples can be used as they are only in 4:2:0 of 8 or 10 bits"
    if why:
        _log.warning("%s is left out: %s", video.path, why)
    return not why


def _plain_item(
    index: int,
    seed: int,
    video: Source,
    library: Library,
    settings: PoolSettings,
    encodes: tuple[EncodeSettings, ...],
) -> Item:
    rng = np.random.default_rng([seed, index])
    start = video.draw_start(rng)
    window = _draw_window(video, settings, rng)
    clip = library.planes(video, start, window)
    kept = min(settings.frames, clip.frames)
    first = int(rng.integers(clip.frames - kept + 1))
    about = {"item": index, "seed": seed, "sources": [video.name], "matrix": video.matrix, "cuts": []}
    place = {"start": start, "crop": [window[0], window[1]]}
    return describe(clip, first, kept, list(encodes), {**about, **place})


def _draw_window(video: Source, settings: PoolSettings, rng: np.random.Generator) -> Window:
    """A crop at an even place; smaller than asked where the video is."""
    tall, wide = video.height // 2 * 2, video.width // 2 * 2
    height, width = min(settings.height, tall), min(settings.width, wide)
    top, left = 2 * int(rng.integers((tall - height) // 2 + 1)), 2 * int(rng.integers((wide - width) // 2 + 1))
    return top, left, height, width


@dataclass(frozen=True, slots=True)
class _Maker:
    """What makes items, in a process of its own or in this one. It takes along what was found: looking into all
    sources again takes long."""

    sources: list[Source]
    seed: int
    settings: PoolSettings

    def __call__(self, _: int) -> Callable[[int], tuple[int, Item]]:
        import torch

        torch.set_num_threads(1)
        library = Library()
        return lambda index: (index, make_item(index, self.seed, self.sources, library, self.settings))
