"""Training samples from PNG folders as the DiQP paper lays them out (SEPE8K, UVG), cut as its program does.

A folder of encoded frames is any folder named ``QP-x`` that holds ``000.png, 001.png, ...``. Its pristine frames are
looked for, in this order, in

- the same path with the part ``Encoded`` replaced by ``Raw`` (``Encoded/07/QP-99/*.png`` and ``Raw/07/*.png``,
  or ``07/Encoded/QP-99/*.png`` and ``07/Raw/*.png``, or ``Encoded/QP-99/*.png`` and ``Raw/*.png``),
- the parent folder, as ``000_8K.png`` and so on (``07/QP-99/*.png`` and ``07/*_8K.png``).

Frames are paired by rank, not by number: FFmpeg numbers from 1 what the paper's program numbers from 0.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsdiqp.errors import DiqpError

Picture = NDArray[np.uint8]

VISIBLE_WINDOW = (4096, 7680)
"""Height and width of the part of an 8192x4320 frame that the paper's program shows the network."""

ENCODED_FOLDER = re.compile(r"QP-(\d+)", re.IGNORECASE)
"""Name of a folder of encoded frames."""
_FRAME = re.compile(r"(\d+)(_8K)?\.png", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sequence8K:
    """One sequence at one QP: as many pristine as encoded frames, in order."""

    name: str
    qp: int
    raw: tuple[Path, ...]
    encoded: tuple[Path, ...]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.raw)


@dataclass(frozen=True, slots=True)
class RgbSample:
    """One network input and its truth: uint8 RGB, laid out colour, frame, y, x."""

    tile: Picture
    """[3,3,h,w] of the encoded frames n-1, n, n+1."""
    truth: Picture
    """[3,3,h,w] of the same pristine frames."""
    around: Picture
    """[3,2,g,g]: the whole encoded frames n-1 and n+1, shrunk."""
    ahead_tile: Picture
    """[3,2,h,w]: the tile of n+1 and of the look-ahead frame."""
    ahead_scaled: Picture
    """[3,2,g,g]: the whole frame n+1 and the whole look-ahead frame, shrunk."""
    top: int
    """Of the tile in what the network sees as the whole frame."""
    left: int
    height: int
    """Of what the network sees as the whole frame."""
    width: int
    middle: int
    """n."""
    frames: int
    qp: int
    """As the encoder was given it, in the codec's own scale."""
    codec: str


def find_sequences(folder: Path) -> list[Sequence8K]:
    """All sequences below ``folder`` by name and QP. Raises DiqpError when there are none or frames are missing."""
    if not folder.is_dir():
        raise DiqpError(f"{folder} is not a folder; give one with Raw and Encoded frames")
    found = []
    for encoded in sorted(path for path in folder.rglob("*") if path.is_dir() and ENCODED_FOLDER.fullmatch(path.name)):
        frames = _numbered(encoded, suffix=False)
        if not frames:
            continue
        raw = _raw_frames(encoded, folder)
        match = ENCODED_FOLDER.fullmatch(encoded.name)
        assert match is not None
        if len(raw) != len(frames):
            raise DiqpError(
                f"{encoded} has {len(frames)} frames and its pristine folder {len(raw)}; "
                "there must be one pristine frame for each encoded one"
            )
        if len(frames) < 3:
            raise DiqpError(f"{encoded} has {len(frames)} frames; a triplet needs 3 or more")
        parts = [part for part in encoded.relative_to(folder).parts[:-1] if part.lower() != "encoded"]
        name = "/".join(parts) or folder.name
        found.append(Sequence8K(name, int(match.group(1)), tuple(raw), tuple(frames)))
    if not found:
        raise DiqpError(f"{folder} has no folders named QP-x with PNG frames; see docs/training-data.md for the layout")
    return sorted(found, key=lambda sequence: (sequence.name, sequence.qp))


def _numbered(folder: Path, suffix: bool) -> list[Path]:
    numbered = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _FRAME.fullmatch(path.name)
        if match and bool(match.group(2)) == suffix:
            numbered.append((int(match.group(1)), path))
    return [path for _, path in sorted(numbered)]


def _raw_frames(encoded: Path, root: Path) -> list[Path]:
    inner = encoded.parent.relative_to(root).parts
    for index, part in enumerate(inner):
        if part.lower() == "encoded":
            for raw in ("Raw", "raw", "RAW"):
                frames = _numbered(root.joinpath(*inner[:index], raw, *inner[index + 1 :]), suffix=False)
                if frames:
                    return frames
    frames = _numbered(encoded.parent, suffix=True)
    if not frames:
        raise DiqpError(
            f"no pristine frames for {encoded}; put them into a folder Raw beside Encoded, "
            f"or as 000_8K.png, 001_8K.png, ... into {encoded.parent}"
        )
    return frames


class SepeDataset:
    """Every triplet of every sequence and QP, middle frames 1, 3, 5, ... as the paper's program takes them.

    - ``codec``: what the frames were encoded with; the folders don't say.
    - ``crop``: side of the square tiles, ``guide``: side of the shrunk whole frames.
    - ``look_ahead``: T; past the end the last frame stands in.
    - ``visible``: height and width of a window, placed at random, that counts as the whole frame; ``None`` takes the
      whole frame. Frames smaller than the window are taken whole.
    - ``sequences``, ``qps``: use only these.
    """

    def __init__(
        self,
        folder: Path | str,
        codec: str,
        crop: int = 512,
        guide: int = 512,
        look_ahead: int = 50,
        visible: tuple[int, int] | None = VISIBLE_WINDOW,
        sequences: Sequence[str] | None = None,
        qps: Sequence[int] | None = None,
    ) -> None:
        everything = find_sequences(Path(folder))
        self.sequences = [
            sequence
            for sequence in everything
            if (sequences is None or sequence.name in sequences) and (qps is None or sequence.qp in qps)
        ]
        if not self.sequences:
            there = ", ".join(f"{sequence.name} QP {sequence.qp}" for sequence in everything)
            raise DiqpError(f"none of the wanted sequences and QPs is in {folder}; there are {there}")
        self.codec = codec
        self.crop = crop
        self.guide = guide
        self.look_ahead = look_ahead
        self.visible = visible
        self._places = [
            (sequence, middle) for sequence in self.sequences for middle in range(1, sequence.frames - 1, 2)
        ]

    def __len__(self) -> int:
        """Number of triplets."""
        return len(self._places)

    def load(self, index: int, rng: np.random.Generator) -> RgbSample:
        """Triplet ``index`` at a random place. Raises DiqpError for unreadable or too small frames."""
        sequence, middle = self._places[index]
        numbers = [middle - 1, middle, middle + 1]
        ahead = min(middle + 1 + self.look_ahead, sequence.frames - 1)
        encoded = {n: read_png(sequence.encoded[n]) for n in sorted({*numbers, ahead})}
        raw = [read_png(sequence.raw[n]) for n in numbers]
        frame_height, frame_width = encoded[middle].shape[:2]
        wanted = self.visible or (frame_height, frame_width)
        height, width = min(wanted[0], frame_height), min(wanted[1], frame_width)
        if min(height, width) < self.crop:
            raise DiqpError(
                f"{sequence.encoded[middle]} is {frame_width}x{frame_height}, smaller than a tile of {self.crop}; "
                "give a smaller crop"
            )
        y0 = int(rng.integers(frame_height - height + 1))
        x0 = int(rng.integers(frame_width - width + 1))
        top = int(rng.integers(height - self.crop + 1))
        left = int(rng.integers(width - self.crop + 1))
        rows = slice(y0 + top, y0 + top + self.crop)
        columns = slice(x0 + left, x0 + left + self.crop)
        tiles = {n: picture[rows, columns] for n, picture in encoded.items()}
        visible = {n: encoded[n][y0 : y0 + height, x0 : x0 + width] for n in {numbers[0], numbers[2], ahead}}
        shrunk = {n: shrink_bicubic(picture, (self.guide, self.guide)) for n, picture in visible.items()}
        return RgbSample(
            tile=_stack([tiles[n] for n in numbers]),
            truth=_stack([picture[rows, columns] for picture in raw]),
            around=_stack([shrunk[numbers[0]], shrunk[numbers[2]]]),
            ahead_tile=_stack([tiles[numbers[2]], tiles[ahead]]),
            ahead_scaled=_stack([shrunk[numbers[2]], shrunk[ahead]]),
            top=top,
            left=left,
            height=height,
            width=width,
            middle=middle,
            frames=sequence.frames,
            qp=sequence.qp,
            codec=self.codec,
        )

    def samples(self, seed: int) -> Iterator[RgbSample]:
        """Endless samples, each epoch a new permutation of all triplets."""
        rng = np.random.default_rng(seed)
        while True:
            for index in rng.permutation(len(self)):
                yield self.load(int(index), rng)


def _stack(pictures: list[Picture]) -> Picture:
    return np.ascontiguousarray(np.stack(pictures).transpose(3, 0, 1, 2))


def read_png(path: Path) -> Picture:
    """An 8-bit RGB picture [H,W,3]."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.uint8)
    except OSError as error:
        raise DiqpError(f"{path} can't be read ({error}); make it anew") from error


def shrink_bicubic(picture: Picture, size: tuple[int, int]) -> Picture:
    """OpenCV's INTER_CUBIC (a = -0.75, no antialiasing, half-pixel centres), rounded half to even and clipped.

    ``picture`` is [H,W,3], the result [h,w,3]. Reads only the samples under the taps, which matters at 8K.
    """
    rows, row_weights = _taps(picture.shape[0], size[0])
    columns, column_weights = _taps(picture.shape[1], size[1])
    # Row by row of taps, so that no more than a few megabytes are gathered at a time.
    total = np.zeros((*size, 3), np.float64)
    for i in range(4):
        lines = picture[rows[:, i]]
        across = np.zeros((*size, 3), np.float64)
        for j in range(4):
            across += lines[:, columns[:, j]] * column_weights[:, j, None]
        total += across * row_weights[:, i, None, None]
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def _taps(length: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    a = -0.75
    centre = (np.arange(size) + 0.5) * (length / size) - 0.5
    first = np.floor(centre).astype(np.intp)
    t: NDArray[np.float64] = (centre - first).astype(np.float64)

    def near(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    weights = np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], 1)
    indices = np.clip(first[:, None] + np.arange(-1, 3), 0, length - 1)
    return indices, weights
