"""Training samples from a pool: decoded and pristine planes of three consecutive frames, cut on the coding grid."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsdiqp.alignment import compensate, seen_steps
from vsdiqp.errors import DiqpError
from vsdiqp.training.degrade import Clip, Samples, decode, header_qps
from vsdiqp.training.motion import Motion, motion_bytes
from vsdiqp.training.pool import INDEX, read_index_from, read_stream
from vsdiqp.training.sources import FEWEST, warn_once


@dataclass(frozen=True, slots=True)
class DecodedStream:
    """One encode of an item, decoded: the same frames as the item's source."""

    clip: Clip
    codec: str
    nominal: float
    """The QP asked of the encoder, in the codec's scale."""
    qps: NDArray[np.float32]
    """[F], each frame's own QP in the codec's scale, from its headers."""
    constant: bool
    """Whether the encode has a constant QP (``cqp``), so that ``nominal`` means something to a user."""
    preset: str
    gop: str
    mode: str
    flat: bool
    position: int
    """Index of the first of these frames in the stream that was encoded."""
    number: int = 0
    """Its place among the item's encodes."""
    first: Samples | None = None
    """[F,H,W] luma as a first network restores it, where there is a first pass."""
    motion: Motion = field(default_factory=Motion, compare=False, repr=False)
    """Of what is seen beside frames: of ``first``, where there is one."""


@dataclass(frozen=True, slots=True)
class DecodedItem:
    """A pool item in memory: uint8 (or, 10 bits, uint16) planes."""

    number: int
    source: Clip
    degraded: tuple[DecodedStream, ...]
    matrix: int
    """H.273 matrix coefficients."""
    cuts: tuple[int, ...]
    """Frames that begin a new scene."""
    sources: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Memory of all samples."""
        clips = (self.source, *(stream.clip for stream in self.degraded))
        first = sum(stream.first.nbytes for stream in self.degraded if stream.first is not None)
        return int(sum(clip.y.nbytes + clip.c.nbytes for clip in clips)) + first

    def scene(self, frame: int) -> tuple[int, int]:
        """First and last frame of the scene that ``frame`` belongs to."""
        starts = [0, *sorted(self.cuts), self.source.frames]
        return max(n for n in starts if n <= frame), min(n for n in starts if n > frame) - 1


RestoreStream = Callable[[DecodedItem, DecodedStream], Samples]
"""What restores a stream for those who look at its frames as neighbours: [F,H,W] luma in the item's own depth."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A triplet at one place of an item. All samples are in the item's own bit depth."""

    y: Samples
    """[3,h,w] decoded luma of frames n-1, n, n+1 inside the crop."""
    c: Samples
    """[2,3,h/2,w/2] decoded Cb and Cr."""
    y_true: Samples
    """[3,h,w] pristine luma."""
    c_true: Samples
    """[2,3,h/2,w/2] pristine chroma."""
    y_whole: Samples
    """[3,H,W] decoded luma of the whole frames, a view; for Look Around."""
    c_whole: Samples
    """[2,3,H/2,W/2]."""
    y_ahead: Samples
    """[H,W] decoded luma of the whole look-ahead frame: n+1+T, or the last before the clip's end or a cut."""
    c_ahead: Samples
    """[2,H/2,W/2]."""
    top: int
    left: int
    middle: int
    """Index of frame n in the item."""
    shown: tuple[int, ...]
    """Indices of the three frames: at the ends of a scene one may be shown twice."""
    frames: int
    """Frames of the item."""
    qp: float
    """Mean QP of the three frames (or the nominal one, see ``PoolDataset.qp``)."""
    codec: str
    bits: int
    matrix: int
    y_beside: NDArray[np.float32] | None = None
    """[3,S,h,w] luma of the frames that each frame is seen beside, inside the crop and aligned to it
    (`vsdiqp.alignment.seen_steps`; ``neighbours`` > 0 only). Not rounded."""


class PoolDataset:
    """Items of a pool, decoded when they're needed and kept in memory as far as ``cache_bytes`` goes.

    - ``codecs``: which encodes to use.
    - ``crop``: height and width of samples; offsets are multiples of ``align`` (64 keeps the whole coding grid's
      phase, 8 the transform grid's).
    - ``look_ahead``: T, frames between the triplet and its look-ahead frame.
    - ``qp``: ``frames`` gives the mean of the frames' own QPs (what the filter reads from a bitstream), ``nominal``
      the QP asked of a constant-QP encode (what a user types), ``mixed`` one or the other, evenly.
    - ``respect_cuts``: frames beyond a cut are replaced by the nearest on the middle frame's side, as the filter does
      when it's told of cuts.
    - ``neighbours``: K, frames on each side of every frame to align to it.
    - ``first_pass``: restores the frames that neighbours are taken from and found by, and that are seen beside
      themselves (`vsdiqp.training.first_pass`).

    Items of fewer than 3 frames, which older pools may have, are left out with a warning.
    Items made after this object was: ``refresh()``. Raises DiqpError for a folder without a pool.
    """

    def __init__(
        self,
        folder: Path | str,
        codecs: Sequence[str] = ("hevc", "av1"),
        crop: tuple[int, int] = (128, 128),
        align: int = 64,
        look_ahead: int = 0,
        qp: str = "mixed",
        respect_cuts: bool = True,
        cache_bytes: int = 9 << 30,
        neighbours: int = 0,
        first_pass: RestoreStream | None = None,
    ) -> None:
        if qp not in ("frames", "nominal", "mixed"):
            raise DiqpError(f"qp is {qp!r}; give frames, nominal or mixed")
        if align % 2 or align < 2 or crop[0] % 2 or crop[1] % 2:
            raise DiqpError(f"crop {crop} and align {align} must be even: the planes are 4:2:0")
        self.folder = Path(folder)
        self.codecs = tuple(codecs)
        self.crop = crop
        self.align = align
        self.look_ahead = look_ahead
        self.qp = qp
        self.respect_cuts = respect_cuts
        self.neighbours = neighbours
        self._first_pass = first_pass
        self.cache_bytes = cache_bytes
        self._entries: list[dict[str, Any]] = []
        self._kept: dict[int, DecodedItem] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        self._offset = 0
        if self.refresh() == 0:
            raise DiqpError(
                f"{self.folder / INDEX} has no items of {FEWEST} frames or more; make a pool with: vsdiqp pool SOURCES "
                f"{self.folder}"
            )

    def __len__(self) -> int:
        """Items known."""
        return len(self._entries)

    @property
    def cached(self) -> tuple[int, int]:
        """Items and bytes kept in memory, with what motion takes once it is known."""
        return len(self._kept), self._bytes

    @property
    def entries(self) -> Sequence[dict[str, Any]]:
        """The index entries of all items."""
        return self._entries

    def refresh(self) -> int:
        """Take up items that were written since; returns how many."""
        entries, self._offset = read_index_from(self.folder, self._offset)
        usable = [entry for entry in entries if entry["frames"] >= FEWEST]
        if len(usable) < len(entries):
            warn_once(
                f"{self.folder} has items of fewer than {FEWEST} frames, the length of a triplet; they are left out"
            )
        self._entries += usable
        return len(usable)

    def load_item(self, index: int) -> DecodedItem:
        """The item, from memory or decoded now (about 10 ms). May be called from several threads."""
        item = self._kept.get(index)
        if item is None:
            item = self._decode(self._entries[index])
            size = self.footprint(item)
            with self._lock:
                if index not in self._kept and self._bytes + size <= self.cache_bytes:
                    self._kept[index] = item
                    self._bytes += size
        return item

    def footprint(self, item: DecodedItem) -> int:
        """Bytes of an item that is kept, its motion included: that comes when a stream has been asked for often."""
        frames, height, width = item.source.y.shape
        return item.nbytes + len(item.degraded) * motion_bytes(frames, height, width, self.neighbours)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: everything but what this one has decoded, and the index, which lies in the pool. A pipe
        holds 64 KiB: with more, each process must come up and read before the next is started."""
        return {**self.__dict__, "_kept": {}, "_bytes": 0, "_lock": None, "_entries": [], "_offset": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        self.__dict__.update(state, _lock=threading.Lock())
        if self.refresh() == 0:
            raise DiqpError(f"{self.folder / INDEX} has no items any more; make the pool anew")

    def _decode(self, entry: dict[str, Any]) -> DecodedItem:
        source = decode(read_stream(self.folder, entry, entry["source"]))
        degraded = []
        for number, about in enumerate(entry["degraded"]):
            if about["codec"] not in self.codecs:
                continue
            data = read_stream(self.folder, entry, about["stream"])
            # Pools of the first version held only the encoder's own report.
            qps = about["qps"] if "mean_qps" in about else header_qps(data)[about["first"] :][: entry["frames"]]
            degraded.append(
                DecodedStream(
                    clip=decode(data, about["first"], entry["frames"]),
                    codec=about["codec"],
                    nominal=float(about["qp"]),
                    qps=np.asarray(qps, np.float32),
                    constant=about["mode"] == "cqp",
                    preset=about["preset"],
                    gop=about["gop"],
                    mode=about["mode"],
                    flat=about["flat"],
                    position=about["first"],
                    number=number,
                )
            )
        item = DecodedItem(
            entry["item"], source, tuple(degraded), entry["matrix"], tuple(entry["cuts"]), tuple(entry["sources"])
        )
        if self._first_pass is None:
            return item
        passed = (replace(stream, first=self._first_pass(item, stream), motion=Motion()) for stream in item.degraded)
        return replace(item, degraded=tuple(passed))

    def sample(self, rng: np.random.Generator) -> Sample:
        """A random sample: item, encode, triplet and place all evenly drawn."""
        return self.cut(self.load_item(int(rng.integers(len(self)))), rng)

    def samples(self, seed: int) -> Iterator[Sample]:
        """Endless random samples, the same for the same seed and pool."""
        rng = np.random.default_rng(seed)
        while True:
            yield self.sample(rng)

    def cut(self, item: DecodedItem, rng: np.random.Generator) -> Sample:
        """A random triplet and place of an item. Most have all their neighbours, as most frames of a real video do."""
        stream = item.degraded[int(rng.integers(len(item.degraded)))]
        frames, height, width = item.source.y.shape
        middles = list(range(1, frames - 1))
        if self.neighbours and rng.random() < 0.85:
            middles = [m for m in middles if self._has_neighbours(item, m)] or middles
        middle = int(rng.choice(middles))
        high, wide = min(self.crop[0], height), min(self.crop[1], width)
        top = self.align * int(rng.integers((height - high) // self.align + 1))
        left = self.align * int(rng.integers((width - wide) // self.align + 1))
        nominal = self.qp == "nominal" or (self.qp == "mixed" and rng.random() < 0.5)
        return self.sample_at(item, stream, middle, (top, left), (high, wide), nominal and stream.constant)

    def _has_neighbours(self, item: DecodedItem, middle: int) -> bool:
        first, last = self._scene(item, middle)
        return first <= middle - 1 - self.neighbours and middle + 1 + self.neighbours <= last

    def sample_at(
        self,
        item: DecodedItem,
        stream: DecodedStream,
        middle: int,
        place: tuple[int, int],
        size: tuple[int, int],
        nominal: bool = False,
    ) -> Sample:
        """The triplet around ``middle`` at ``place`` (top, left) with ``size`` (height, width)."""
        first, last = self._scene(item, middle)
        order = [min(max(n, first), last) for n in (middle - 1, middle, middle + 1)]
        ahead = min(order[2] + self.look_ahead, last)
        (top, left), (high, wide) = place, size
        rows, columns = slice(top, top + high), slice(left, left + wide)
        half_rows, half_columns = (slice(s.start // 2, s.stop // 2) for s in (rows, columns))
        plain = order[0] + 1 == order[1] == order[2] - 1
        whole: Any = slice(order[0], order[2] + 1) if plain else order
        y, c = stream.clip.y[whole], stream.clip.c[:, whole]
        return Sample(
            y=y[:, rows, columns],
            c=c[:, :, half_rows, half_columns],
            y_true=item.source.y[whole][:, rows, columns],
            c_true=item.source.c[:, whole][:, :, half_rows, half_columns],
            y_whole=y,
            c_whole=c,
            y_ahead=stream.clip.y[ahead],
            c_ahead=stream.clip.c[:, ahead],
            top=top,
            left=left,
            middle=middle,
            shown=tuple(order),
            frames=item.source.frames,
            qp=stream.nominal if nominal else float(stream.qps[order].mean()),
            codec=stream.codec,
            bits=item.source.bits,
            matrix=item.matrix,
            y_beside=self._beside(stream, item.source.bits, order, (first, last), place, size),
        )

    def _beside(
        self,
        stream: DecodedStream,
        bits: int,
        order: list[int],
        scene: tuple[int, int],
        place: tuple[int, int],
        size: tuple[int, int],
    ) -> NDArray[np.float32] | None:
        if not self.neighbours:
            return None
        (top, left), (high, wide) = place, size
        luma = stream.clip.y if stream.first is None else stream.first
        steps = seen_steps(2 * self.neighbours + (stream.first is not None))
        seen = [[min(max(current + step, scene[0]), scene[1]) for step in steps] for current in order]
        pairs = [(current, other) for current, others in zip(order, seen, strict=True) for other in others]
        moving = [pair for pair in pairs if pair[0] != pair[1]]
        vectors = stream.motion.vectors(luma, bits, self.neighbours, moving, (left, top, left + wide, top + high))
        precise = {other: luma[other].astype(np.float32) for _, other in moving}
        aligned = np.empty((3, len(steps), high, wide), np.float32)
        for index, current in enumerate(order):
            for position, other in enumerate(seen[index]):
                out = aligned[index, position]
                if other == current:
                    out[:] = luma[current, top : top + high, left : left + wide]
                else:
                    compensate(precise[other], (0, 0), vectors[current, other], out, left, top)
        return aligned

    def _scene(self, item: DecodedItem, middle: int) -> tuple[int, int]:
        return item.scene(middle) if self.respect_cuts else (0, item.source.frames - 1)
