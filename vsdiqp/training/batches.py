"""Pool samples -> tensors as the network takes them, with chroma treated as the filter's planes treat it."""

import contextlib
import itertools
import math
import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsdiqp.allocation import keep_freed_memory
from vsdiqp.errors import DiqpError
from vsdiqp.network import DiQP
from vsdiqp.network.config import DiQPConfig
from vsdiqp.network.lost import CLIP_FRAMES, DAMAGE, DAMAGE_QPS
from vsdiqp.training.dataset import DecodedItem, PoolDataset, Sample
from vsdiqp.training.processes import ProcessDiedError, in_processes

LUMA_WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Kr and Kb by H.273 matrix."""


TABLE_WINDOW = (7680, 4320)
"""Width and height of the frames that the paper's location tables were learnt on."""

Teach = Callable[[Tensor, float, str], Tensor]
"""Luma 3, h, w of three frames, QP, codec -> what to add to the middle one, h, w."""


@dataclass
class Batch:
    """B samples. Luma 0..1 and chroma centred at 0, limited range taken off."""

    luma: Tensor
    """B, 3, h, w decoded."""
    chroma: Tensor
    """B, 2, 3, h / 2, w / 2 decoded."""
    luma_true: Tensor
    chroma_true: Tensor
    error: Tensor
    """B, 3, 3: mean squared error of the whole decoded frames, by plane (Y, Cb, Cr) and frame."""
    typical: Tensor
    """B: squared error that is usual at the sample's QP."""
    location: Tensor
    """6, B, 1."""
    decay: Tensor
    """B, 1, 1, 1, 1."""
    qp: Tensor
    codec: list[str]
    whole: Tensor | None
    """B, 3 (colour), 3 (n-1, n+1, look-ahead), h, w: thumbnails, when the network has guides."""
    ahead: Tensor | None
    """B, 3 (colour), h, w: the look-ahead frame's tile."""
    matrix: list[int]
    taught: Tensor | None = None
    """B, h, w: what the teacher would add to the luma of one frame of each sample."""
    taught_frame: Tensor | None = None
    """B: which frame that is."""
    beside: Tensor | None = None
    """B, 3, S, h, w: luma of the frames that each frame is seen beside, aligned, when the network has neighbours."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in vars(self).items()
        }
        return Batch(**moved)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, which a GPU copies from without a wait; torch's loaders ask for it."""
        moved: dict[str, Any] = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Batch(**moved)


def sited(chroma: Tensor) -> Tensor:
    """What a half-resolution network sees of left-sited 4:2:0 chroma: interpolated to full size, averaged over 2x2.

    ..., h, w -> the same shape. Horizontally (3 c[i] + c[i+1]) / 4, vertically (1, 6, 1) / 8, edges clamped.
    """
    shape = chroma.shape
    c = F.pad(chroma.reshape(-1, 1, *shape[-2:]), (0, 1, 1, 1), mode="replicate")
    c = (3 * c[..., :-1] + c[..., 1:]) / 4
    return ((c[..., :-2, :] + 6 * c[..., 1:-1, :] + c[..., 2:, :]) / 8).reshape(shape)


def unsited(residual: Tensor) -> Tensor:
    """The way back of a chroma residual ..., h, w to left-sited 4:2:0 ..., h / 2, w / 2.

    The transpose of the interpolation, rows of weights normalised: horizontally (1, 2, 1) / 4, vertically
    (1, 3, 3, 1) / 8. A frame's outermost columns weigh a little differently in the filter, where its edge is clamped.
    """
    shape = residual.shape
    r = F.pad(residual.reshape(-1, 1, *shape[-2:]), (1, 0, 1, 1), mode="replicate")
    rows = (r[..., 0:-3:2, :] + 3 * r[..., 1:-2:2, :] + 3 * r[..., 2:-1:2, :] + r[..., 3::2, :]) / 8
    both = (rows[..., 0:-2:2] + 2 * rows[..., 1:-1:2] + rows[..., 2::2]) / 4
    return both.reshape(*shape[:-2], shape[-2] // 2, shape[-1] // 2)


def full_size(chroma: Tensor, half_resolution: bool) -> Tensor:
    """Left-sited chroma ..., h/2, w/2 -> ..., h, w as the network gets it, or, for cells of 2x2, their means."""
    shape = chroma.shape
    if half_resolution:
        full = F.interpolate(sited(chroma).reshape(-1, 1, *shape[-2:]), scale_factor=2.0, mode="nearest")
    else:
        c = F.pad(chroma.reshape(-1, 1, *shape[-2:]), (0, 1, 0, 0), mode="replicate")
        across = torch.stack([c[..., :-1], (c[..., :-1] + c[..., 1:]) / 2], -1).flatten(-2)
        full = F.interpolate(across, scale_factor=(2.0, 1.0), mode="bilinear", align_corners=False)
    return full.reshape(*shape[:-2], shape[-2] * 2, shape[-1] * 2)


def to_colour(luma: Tensor, chroma: Tensor, config: DiQPConfig, matrix: list[int]) -> Tensor:
    """B, F, h, w and B, 2, F, h/2, w/2 -> B, 3, F, h, w in the network's colours."""
    full = full_size(chroma, config.stem_scale == 2)
    if config.colour == "ycbcr":
        return torch.cat([luma[:, None], full + 0.5], 1)
    weights = torch.tensor([LUMA_WEIGHTS[m] for m in matrix], dtype=luma.dtype, device=luma.device)
    kr, kb = weights.t()[:, :, None, None, None]
    red = luma + 2 * (1 - kr) * full[:, 1]
    blue = luma + 2 * (1 - kb) * full[:, 0]
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return torch.stack([red, green, blue], 1).clamp(0, 1)


def normalised(samples: np.ndarray, bits: int, chroma: bool) -> Tensor:
    """Limited-range code values -> luma 0..1 or chroma centred at 0, fp32."""
    shift = 1 << (bits - 8)
    offset, scale = (128, 224) if chroma else (16, 219)
    return torch.from_numpy(samples.astype(np.float32)).sub_(offset * shift).div_(scale * shift)


def squared_errors(planes: tuple[np.ndarray, np.ndarray], truth: tuple[np.ndarray, np.ndarray], bits: int) -> Tensor:
    """Y (F, H, W) and chroma (2, F, H / 2, W / 2) in code values -> mean squared errors (0..1 scale), (3, F)."""
    luma = normalised(planes[0], bits, False) - normalised(truth[0], bits, False)
    chroma = normalised(planes[1], bits, True) - normalised(truth[1], bits, True)
    return torch.cat([luma.square().mean((1, 2))[None], chroma.square().mean((2, 3))])


class Batches:
    """Endless batches from a pool, made ahead by ``makers`` (``pin``: in page-locked memory); also measures every
    stream's error once.

    Makers are threads, or with ``processes`` processes, which do not wait for each other's Python. Each of these keeps
    to a part of the items, so that together they need no more memory than one. ``teach`` is for threads.

    With one maker a seed gives the same batches in the same order.
    """

    def __init__(
        self,
        dataset: PoolDataset,
        network: DiQP,
        batch: int,
        seed: int,
        refresh_every: int,
        teach: Teach | None = None,
        makers: int = 1,
        pin: bool = False,
        processes: bool = False,
    ):
        self.teach, self.makers, self.pin, self.processes = teach, makers, pin, processes
        self.dataset, self.network, self.batch, self.refresh_every = dataset, network, batch, refresh_every
        self.rngs = np.random.default_rng(seed).spawn(makers)
        self.part, self.parts = 0, 1
        """Which items are drawn: every ``parts``-th from ``part`` on."""
        self._errors: dict[tuple[int, int], Tensor] = {}
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(maxsize=max(2, makers))

    def stream_error(self, item: DecodedItem, index: int) -> Tensor:
        """(3, frames) mean squared error of Y, Cb and Cr of the decoded frames."""
        key = (item.number, index)
        if key not in self._errors:
            truth, decoded = item.source, item.degraded[index].clip
            self._errors[key] = squared_errors((decoded.y, decoded.c), (truth.y, truth.c), truth.bits)
        return self._errors[key]

    @property
    def waiting(self) -> bool:
        """Whether a batch has been made that nobody has taken yet."""
        return not self._ready.empty()

    def _draw(self, rng: np.random.Generator) -> tuple[Sample, Tensor]:
        """A sample and the error of its whole frames."""
        items = len(self.dataset)
        part, parts = (self.part, self.parts) if items >= self.parts else (0, 1)
        item = self.dataset.load_item(part + parts * int(rng.integers((items - part - 1) // parts + 1)))
        index = int(rng.integers(len(item.degraded)))
        one = DecodedItem(item.number, item.source, (item.degraded[index],), item.matrix, item.cuts, item.sources)
        sample = self.dataset.cut(one, rng)
        return sample, self.stream_error(item, index)[:, list(sample.shown)]

    def make(self, maker: int = 0) -> Batch:
        """Draw one batch. Every maker draws its own."""
        rng = self.rngs[maker]
        drawn = [self._draw(rng) for _ in range(self.batch)]
        samples = [sample for sample, _ in drawn]
        batch = collate(samples, torch.stack([error for _, error in drawn]), self.network, rng)
        teach = self.teach  # the loop may end the lessons while this thread is at work
        if teach is not None:
            frames = rng.integers(0, 3, self.batch)
            taught = []
            for luma, n, sample in zip(batch.luma, frames, samples, strict=True):
                # The ends of a triplet have one neighbour, for the network as for its teacher.
                around = luma[[max(n - 1, 0), n, min(n + 1, 2)]]
                taught.append(teach(around, sample.qp, sample.codec))
            batch.taught, batch.taught_frame = torch.stack(taught), torch.from_numpy(frames)
        return batch

    def __iter__(self) -> Generator[Batch]:
        """Batches, some made ahead. Close it when done: those who make them must not outlive the interpreter."""
        ready = self._ready
        stop = threading.Event()

        def fetch() -> None:
            made = in_processes(_Maker(self), itertools.repeat(None), self.makers, stop)
            try:
                with contextlib.closing(made):
                    for batch in made:
                        _put(ready, batch.pin_memory() if self.pin else batch, stop)
            except ProcessDiedError as error:
                problem = DiqpError(
                    f"a process that makes batches died ({error}); if memory ran out, set makers or cache_gib lower"
                )
                _put(ready, problem, stop)
            except Exception as error:
                _put(ready, error, stop)

        def work(maker: int) -> None:
            if self.makers > 1:
                torch.set_num_threads(1)  # there are other makers for the other cores
            made = 0
            while not stop.is_set():
                try:
                    if maker == 0 and made * self.makers % self.refresh_every < self.makers:
                        self.dataset.refresh()
                    made_now = self.make(maker)
                    item: Batch | Exception = made_now.pin_memory() if self.pin else made_now
                except Exception as error:  # shown by the consumer, which can stop the run
                    item = error
                made += 1
                _put(ready, item, stop)

        threads = [threading.Thread(target=work, args=(maker,), daemon=True) for maker in range(self.makers)]
        if self.processes:
            threads = [threading.Thread(target=fetch, daemon=True)]
        try:
            for thread in threads:
                thread.start()
            while True:
                got = ready.get()
                if isinstance(got, Exception):
                    raise got
                yield got
        finally:
            stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            # Threads that are yet to come begin with the number that any thread set last.
            torch.set_num_threads(torch.get_num_threads())


def _put(ready: "queue.Queue[Batch | Exception]", item: Batch | Exception, stop: threading.Event) -> None:
    """Wait until there is room, or for the end."""
    while not stop.is_set():
        try:
            return ready.put(item, timeout=0.1)
        except queue.Full:
            continue


class _Maker:
    """What makes batches in a process of its own."""

    def __init__(self, batches: Batches) -> None:
        self._dataset, self._config = batches.dataset, batches.network.config
        self._batch, self._refresh_every, self._makers = batches.batch, batches.refresh_every, batches.makers
        self._rngs = batches.rngs

    def __call__(self, maker: int) -> Callable[[None], Batch]:
        torch.set_num_threads(1)  # there are other makers for the other cores
        keep_freed_memory()
        self._dataset.cache_bytes //= self._makers
        batches = Batches(self._dataset, DiQP(self._config), self._batch, 0, self._refresh_every)
        batches.rngs = [self._rngs[maker]]
        batches.part, batches.parts = maker, self._makers
        made = itertools.count(1)

        def make(_: None) -> Batch:
            if next(made) * self._makers % self._refresh_every < self._makers:
                self._dataset.refresh()
            return batches.make()

        return make


def typical_error(qp: float, codec: str) -> float:
    """Mean squared luma error (0..1 scale) that is usual at a QP: from the polynomial the networks start from."""
    low, high = DAMAGE_QPS[codec]
    t = 2 * (min(max(qp, low), high) - low) / (high - low) - 1
    a, b, c = DAMAGE[codec]
    return math.exp(2 * (a + b * t + c * t * t))


def collate(samples: list[Sample], error: Tensor, network: DiQP, rng: np.random.Generator) -> Batch:
    """Stack samples and build their locations and, for a network with guides, their thumbnails."""
    config = network.config
    luma = torch.stack([normalised(s.y, s.bits, False) for s in samples])
    chroma = torch.stack([normalised(s.c, s.bits, True) for s in samples])
    height, width = luma.shape[-2:]
    locations, decays = [], []
    for s in samples:
        whole_h, whole_w = s.y_whole.shape[-2:]
        top, left, frames, middle = s.top, s.left, s.frames, s.middle
        # A crop of a 256 pixel clip says nothing of where content lies in a real frame: the place is drawn, so that the
        # network learns what there is to learn of it, and nothing that differs on large frames.
        if config.location == "continuous":
            whole_h, whole_w = 4096, 4096
            top, left = int(rng.integers(4096)), int(rng.integers(4096))
        else:
            # Tables have a row for every place, and for the frames of a clip too: those that no sample asks for stay
            # as they are.
            whole_w, whole_h = (max(min(TABLE_WINDOW[i], config.table_rows[2 + i]), (width, height)[i]) for i in (0, 1))
            left, top = int(rng.integers(whole_w - width + 1)), int(rng.integers(whole_h - height + 1))
            frames, middle = CLIP_FRAMES, int(rng.integers(1, CLIP_FRAMES - 1))
        location, decay = network.locate(s.qp, s.codec, middle, frames, left, top, whole_w, whole_h, height, width)
        locations.append(location)
        decays.append(decay)
    matrix = [s.matrix for s in samples]
    whole = ahead = None
    if config.uses_around or config.uses_ahead:
        thumbnails, tiles = [], []
        for s in samples:
            y = normalised(np.stack([s.y_whole[0], s.y_whole[2], s.y_ahead]), s.bits, False)[None]
            c = normalised(np.stack([s.c_whole[:, 0], s.c_whole[:, 2], s.c_ahead], 1), s.bits, True)[None]
            colour = to_colour(y, c, config, [s.matrix])[0]
            tiles.append(colour[:, 2, s.top : s.top + height, s.left : s.left + width])
            thumbnails.append(
                F.interpolate(colour, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)
            )
        whole, ahead = torch.stack(thumbnails), torch.stack(tiles)
    return Batch(
        luma=luma,
        chroma=chroma,
        luma_true=torch.stack([normalised(s.y_true, s.bits, False) for s in samples]),
        chroma_true=torch.stack([normalised(s.c_true, s.bits, True) for s in samples]),
        error=error,
        typical=torch.tensor([typical_error(s.qp, s.codec) for s in samples]),
        location=torch.stack(locations, 1)[..., None],
        decay=torch.tensor(decays, dtype=torch.float32).view(-1, 1, 1, 1, 1),
        qp=torch.tensor([s.qp for s in samples]),
        codec=[s.codec for s in samples],
        whole=whole,
        ahead=ahead,
        matrix=matrix,
        beside=_beside(samples) if config.neighbours else None,
    )


def _beside(samples: list[Sample]) -> Tensor:
    found = []
    for s in samples:
        if s.y_beside is None:
            raise DiqpError("the network has neighbours: give the PoolDataset as many (neighbours=...)")
        found.append(normalised(s.y_beside, s.bits, False))
    return torch.stack(found)


def network_inputs(config: DiQPConfig, batch: Batch) -> tuple[Tensor, ...]:
    """What `DiQP.forward` takes, the tile in the network's colours first."""
    tile = to_colour(batch.luma, batch.chroma, config, batch.matrix)
    if batch.whole is None or batch.ahead is None:
        none = tile.new_zeros(0)
        around = ahead_tile = ahead_scaled = none
    else:
        around = batch.whole[:, :, :2]
        ahead_scaled = batch.whole[:, :, 1:]
        ahead_tile = torch.stack([tile[:, :, 2], batch.ahead], 2)
    inputs = (tile, around, ahead_tile, ahead_scaled, batch.location, batch.decay)
    return inputs if batch.beside is None else (*inputs, batch.beside)


ACROSS, DOWN = -1, -2
"""Axes of pictures."""
UPSIDE_DOWN = (DOWN,)
MIRRORINGS: tuple[tuple[int, ...], ...] = ((), UPSIDE_DOWN, (ACROSS,), (DOWN, ACROSS))
"""Axes to mirror pictures along: the coding grid, whose steps tiles are a multiple of, stays where it is."""


def predict(
    network: torch.nn.Module, config: DiQPConfig, batch: Batch, mirrored: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Run the network: (tile in its colours B, 3, 3, h, w; restored, the same shape).

    ``mirrored``: the network is shown everything mirrored along these axes; what is returned lies as the batch does.
    It is the network's input that is mirrored, whose chroma lies where luma does, not planes that are sited left.
    """
    inputs = network_inputs(config, batch)
    if not mirrored:
        return inputs[0], network(*inputs)
    turned = [x.flip(mirrored) if x.dim() == 5 else x for x in inputs]
    return inputs[0], network(*turned).flip(mirrored)
