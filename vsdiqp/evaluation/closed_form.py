"""The reference to beat: linear filters chosen per pixel, fitted by least squares in a minute of CPU time.

Each pixel's class says how busy its surroundings are (6 bins), which way its gradients point (3) and whether it
touches a line of the 8x8 coding grid (2). A class has one linear filter over differences to the centre pixel: 7x7 in
the frame and 3x3 in each neighbour frame, the latter clipped, which makes the filter shun what moved. A network that
does not beat this has learnt nothing yet.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.metrics import Picture
from vsdiqp.evaluation.video import Node, map_luma

SHIPPED = Path(__file__).with_name("closed_form.safetensors")

_ACTIVITY = np.array([0.0025, 0.006, 0.012, 0.022, 0.04], np.float32)  # limits of mean |gradient|, range 1
_DIRECTION = np.array([0.4, 0.6], np.float32)  # limits of the horizontal gradient's share
_REACH = 3  # 7x7
_NEIGHBOUR_CLIP = np.float32(0.03)
CLASSES = (len(_ACTIVITY) + 1) * (len(_DIRECTION) + 1) * 2
FEATURES = (2 * _REACH + 1) ** 2 - 1 + 2 * 9

CENTRES: dict[str, tuple[float, ...]] = {
    "hevc": (12, 17, 22, 27, 32, 37, 42, 47, 51),
    "av1": (40, 70, 102, 128, 153, 179, 204, 230, 255),
}
"""QPs that have filters of their own; between them filters are blended linearly, beyond them the last ones serve."""

_STRIPE = 64  # rows whose features are held at once


def classify(picture: Picture) -> NDArray[np.int64]:
    """Class of every pixel, 0 to `CLASSES` - 1; the picture's top left lies on the coding grid."""
    rows, columns = picture.shape
    padded = np.pad(picture, _REACH, "edge")
    side = 2 * _REACH + 1
    # Differences inside the 7x7 patch alone: a mirrored picture has mirrored classes.
    across = _box_sum(np.abs(padded[:, 1:] - padded[:, :-1]), side, side - 1)
    down = _box_sum(np.abs(padded[1:] - padded[:-1]), side - 1, side)
    total = across + down
    activity = np.searchsorted(_ACTIVITY, total / np.float32(2 * side * (side - 1)))
    # A flat patch has no direction: the tiny constant makes it the middle bin instead of a division by zero.
    tiny = np.float32(1e-9)
    direction = np.searchsorted(_DIRECTION, (across + tiny) / (total + 2 * tiny))
    y, x = np.arange(rows) % 8, np.arange(columns) % 8
    grid = ((y == 0) | (y == 7))[:, None] | ((x == 0) | (x == 7))[None, :]
    classes: NDArray[np.int64] = ((activity * (len(_DIRECTION) + 1) + direction) * 2 + grid).astype(np.int64)
    return classes


def features(before: Picture, current: Picture, after: Picture, top: int, bottom: int) -> NDArray[np.float32]:
    """(FEATURES, pixels) of rows top..bottom-1: differences to the centre pixel, edges repeated."""
    rows, columns = bottom - top, current.shape[1]
    out = np.empty((FEATURES, rows, columns), np.float32)
    centre = current[top:bottom]
    count = 0
    window = _rows(current, top, bottom, _REACH)
    for dy in range(2 * _REACH + 1):
        for dx in range(2 * _REACH + 1):
            if (dy, dx) != (_REACH, _REACH):
                np.subtract(window[dy : dy + rows, dx : dx + columns], centre, out=out[count])
                count += 1
    for neighbour in (before, after):
        window = _rows(neighbour, top, bottom, 1)
        for dy in range(3):
            for dx in range(3):
                np.subtract(window[dy : dy + rows, dx : dx + columns], centre, out=out[count])
                count += 1
    np.clip(out[-18:], -_NEIGHBOUR_CLIP, _NEIGHBOUR_CLIP, out=out[-18:])
    return out.reshape(FEATURES, -1)


def correct(
    filters: NDArray[np.float32], before: Picture, current: Picture, after: Picture, strength: float = 1.0
) -> Picture:
    """The restored luma. `filters` is (CLASSES, FEATURES)."""
    classes = classify(current)
    out = current.copy()
    for top in range(0, current.shape[0], _STRIPE):
        bottom = min(top + _STRIPE, current.shape[0])
        values = features(before, current, after, top, bottom)
        residual = np.empty(values.shape[1], np.float32)
        for kind, here in _groups(classes[top:bottom]):
            residual[here] = filters[kind] @ values[:, here]
        out[top:bottom] += np.float32(strength) * residual.reshape(bottom - top, -1)
    return out


@dataclass(frozen=True)
class ClosedForm:
    """Fitted filters as a method of ``vsdiqp evaluate``: restores luma, leaves chroma alone."""

    filters: dict[str, NDArray[np.float32]]
    """Codec to (centres, CLASSES, FEATURES), centres as in `CENTRES`."""
    origin: str
    """What they were fitted on."""
    name: str = "closed-form"

    @property
    def key(self) -> str:
        """A hash of the coefficients."""
        import hashlib

        digest = hashlib.sha256()
        for codec in sorted(self.filters):
            digest.update(codec.encode() + self.filters[codec].tobytes())
        return f"closed-form {digest.hexdigest()[:16]}"

    def at(self, codec: str, qp: float) -> NDArray[np.float32]:
        """Filters (CLASSES, FEATURES) for a QP of the codec's scale. Raises DiqpError for codecs not fitted."""
        if codec not in self.filters:
            raise DiqpError(f"the closed-form filters know {', '.join(self.filters)}, not {codec!r}")
        filters = self.filters[codec]
        mixed = sum(weight * filters[i] for i, weight in _hat(codec, qp))
        return np.asarray(mixed, np.float32)

    def restore(self, clip: Node, codec: str, qp: float) -> Node:
        """Same format and length; luma alone changes."""
        return map_luma(clip, partial(correct, self.at(codec, qp)))

    def save(self, path: str | Path) -> None:
        """Writes a .safetensors file (half precision: the filters are small numbers of few digits)."""
        from safetensors.numpy import save

        metadata = {"format": "vsdiqp closed form 1", "origin": self.origin, "centres": json.dumps(CENTRES)}
        # Not save_file, which makes files that their owner alone can read.
        Path(path).write_bytes(save({c: f.astype(np.float16) for c, f in self.filters.items()}, metadata))

    @classmethod
    def load(cls, path: str | Path | None = None) -> "ClosedForm":
        """Reads a file that `save` wrote; default: the shipped one. Raises DiqpError where it is missing or not one."""
        from safetensors import SafetensorError, safe_open

        path = Path(path) if path else SHIPPED
        if not path.is_file():
            raise DiqpError(f"no closed-form filters at {path}; fit them with vsdiqp evaluate --fit-closed-form POOL")
        try:
            with safe_open(str(path), "np") as file:
                metadata = file.metadata() or {}
                filters = {codec: file.get_tensor(codec).astype(np.float32) for codec in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise DiqpError(f"{path} is not a file of closed-form filters: {error}") from error
        for codec, values in filters.items():
            if values.shape != (len(CENTRES.get(codec, ())), CLASSES, FEATURES):
                raise DiqpError(f"{path} holds filters of another kind: {codec} {values.shape}")
        return cls(filters, metadata.get("origin", "unknown"))


@dataclass(frozen=True, slots=True)
class Sample:
    """A frame to fit on: three decoded lumas in a row and the middle one's source, all float32 of range 1."""

    codec: str
    qp: float
    before: Picture
    current: Picture
    after: Picture
    source: Picture


class Fitter:
    """Normal equations of every codec, QP centre and class, gathered frame by frame."""

    def __init__(self) -> None:
        shape = (CLASSES, FEATURES, FEATURES)
        self._gram = {c: np.zeros((len(q), *shape)) for c, q in CENTRES.items()}
        self._moment = {c: np.zeros((len(q), *shape[:2])) for c, q in CENTRES.items()}
        self._pixels = {c: np.zeros((len(q), CLASSES)) for c, q in CENTRES.items()}
        self.frames = dict.fromkeys(CENTRES, 0)

    def add(self, sample: Sample) -> None:
        """One frame, weighted by 1 / its mean squared error: what is judged is a mean of logarithms over frames.

        The weight grows no further above 40 dB: there 8-bit rounding decides.
        """
        wanted = sample.source - sample.current
        error = float(np.mean(np.square(wanted, dtype=np.float64)))
        if error < 1e-9:  # (nearly) lossless: nothing to learn, and its weight would drown the rest
            return
        error = max(error, 1e-4)
        self.frames[sample.codec] += 1
        rows = sample.current.shape[0]
        values = features(sample.before, sample.current, sample.after, 0, rows)
        target = wanted.ravel()
        for kind, here in _groups(classify(sample.current)):
            matrix = values[:, here]
            gram = (matrix @ matrix.T).astype(np.float64) / (error * target.size)
            moment = (matrix @ target[here]).astype(np.float64) / (error * target.size)
            for i, weight in _hat(sample.codec, sample.qp):
                self._gram[sample.codec][i, kind] += weight * gram
                self._moment[sample.codec][i, kind] += weight * moment
                self._pixels[sample.codec][i, kind] += weight * here.size

    def solve(self, origin: str, ridge: float = 1e-2, least_pixels: int = 20000) -> ClosedForm:
        """Filters for the codecs seen. Classes with fewer than `least_pixels` pixels keep their hands off (zeros).

        Mirroring, transposing and reversing time give equally likely frames, so each class's equations are the mean
        over all 16 such changes; and each QP centre borrows half of its neighbours' equations. Both, and the ridge,
        were chosen by the gain on frames not fitted on. Raises DiqpError where no damaged frame came.
        """
        if not any(self.frames.values()):
            raise DiqpError("nothing to fit the closed-form filters on: no frames damaged at constant QP came")
        filters: dict[str, NDArray[np.float32]] = {}
        for codec in CENTRES:
            if not self.frames[codec]:
                continue
            grams, moments, pixels = (_borrow(values) for values in self._symmetric(codec))
            out = np.zeros(moments.shape, np.float32)
            for i, kind in np.ndindex(*pixels.shape):
                if pixels[i, kind] >= least_pixels:
                    gram = grams[i, kind]
                    shift = ridge * np.trace(gram) / FEATURES * np.eye(FEATURES)
                    out[i, kind] = np.linalg.solve(gram + shift, moments[i, kind])
            filters[codec] = out
        return ClosedForm(filters, origin)

    def _symmetric(self, codec: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Gram matrices, moments and pixel counts, as if every frame had come in all its 16 symmetric versions."""
        sums = tuple(np.zeros_like(part[codec]) for part in (self._gram, self._moment, self._pixels))
        symmetries = list(_symmetries())
        for order, classes in symmetries:
            sums[0][:, classes] += self._gram[codec][:, :, order][:, :, :, order]
            sums[1][:, classes] += self._moment[codec][:, :, order]
            sums[2][:, classes] += self._pixels[codec]
        # A changed frame says little new about how much there is to learn from: pixels are counted once.
        return sums[0], sums[1], sums[2] / len(symmetries)


def _symmetries() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each change of a frame: where each of its features stood before, and what each class becomes."""
    reach = range(-_REACH, _REACH + 1)
    places = [(0, dy, dx) for dy in reach for dx in reach if (dy, dx) != (0, 0)]
    places += [(frame, dy, dx) for frame in (-1, 1) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    index = {place: i for i, place in enumerate(places)}
    directions = len(_DIRECTION) + 1
    activity, direction, grid = np.unravel_index(np.arange(CLASSES), (CLASSES // (2 * directions), directions, 2))
    for flip_y, flip_x, time in product((1, -1), repeat=3):
        flipped = [(time * frame, flip_y * dy, flip_x * dx) for frame, dy, dx in places]
        yield np.array([index[place] for place in flipped]), np.arange(CLASSES)
        turned = np.ravel_multi_index(
            (activity, directions - 1 - direction, grid), (CLASSES // (2 * directions), directions, 2)
        )
        yield np.array([index[frame, dx, dy] for frame, dy, dx in flipped]), turned


def _borrow(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each QP centre's sums with half of its neighbours' added."""
    out = values.copy()
    out[1:] += values[:-1] / 2
    out[:-1] += values[1:] / 2
    return out


def _groups(classes: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each class that occurs, with the flat indices of its pixels."""
    flat = classes.ravel()
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(CLASSES + 1))
    for kind in range(CLASSES):
        if bounds[kind] < bounds[kind + 1]:
            yield kind, order[bounds[kind] : bounds[kind + 1]]


def _hat(codec: str, qp: float) -> list[tuple[int, float]]:
    """Neighbouring centres of a QP with their weights, which sum to one."""
    centres = np.asarray(CENTRES[codec], np.float64)
    place = float(np.interp(qp, centres, np.arange(len(centres))))
    low = min(int(place), len(centres) - 2)
    share = place - low
    return [(i, w) for i, w in ((low, 1 - share), (low + 1, share)) if w > 0]


def _box_sum(values: Picture, height: int, width: int) -> Picture:
    """Sums over windows that lie inside the array: smaller by height - 1 and width - 1."""
    rows, columns = values.shape[0] - height + 1, values.shape[1] - width + 1
    tall = values[:rows].copy()
    for i in range(1, height):
        tall += values[i : i + rows]
    wide = tall[:, :columns].copy()
    for i in range(1, width):
        wide += tall[:, i : i + columns]
    return wide


def _rows(picture: Picture, top: int, bottom: int, reach: int) -> Picture:
    """Rows top-reach..bottom+reach-1 with `reach` columns more on each side, edges repeated."""
    rows = np.clip(np.arange(top - reach, bottom + reach), 0, picture.shape[0] - 1)
    return np.pad(picture[rows], ((0, 0), (reach, reach)), "edge")
