"""alignment.cu against the CPU's way (vsdiqp.neighbours, vsdiqp.alignment), its code run by a CPU."""

import ctypes
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from host_grid import compile_for_host
from moving import moving_frame

from vsdiqp import tiles
from vsdiqp.alignment import Aligner, search_luma, seen_steps
from vsdiqp.clip import ClipFormat, FrameColour, Planes, Run
from vsdiqp.kernels import layouts, program, sources
from vsdiqp.kernels.alignment import PAD, AlignmentProgram, Pairs, SearchPlanes, buffers
from vsdiqp.neighbours import Neighbours
from vsdiqp.planes import FrameMap, identity
from vsdiqp.tiles import TilePlan

K = 2
SEEN = 2 * K + 1
"""Two neighbours on each side and the frame itself, as a network with a first pass sees them."""


def clip(family="YUV", bits=8, sub=(0, 0), sample="integer", size=(101, 75)) -> ClipFormat:
    return ClipFormat(family, sample, bits, *sub, *size, 30)


LIMITED, FULL, RGB = FrameColour(1, False, 0), FrameColour(1, True, 1), FrameColour(0, True, 0)
FORMATS = {
    "yuv420p8": (clip(sub=(1, 1), size=(104, 74)), LIMITED),
    "yuv420p10": (clip(bits=10, sub=(1, 1), size=(90, 70)), LIMITED),
    "yuv422p16 full": (clip(bits=16, sub=(1, 0), size=(102, 75)), FULL),
    "yuv444p8 odd": (clip(), LIMITED),
    "yuv444p10 odd": (clip(bits=10, size=(99, 67)), FULL),
    "yuv420ph": (clip(bits=16, sub=(1, 1), sample="float", size=(64, 80)), LIMITED),
    "gray8": (clip("GRAY"), LIMITED),
    "gray10": (clip("GRAY", 10), LIMITED),
    "gray16 tiny": (clip("GRAY", 16, size=(16, 17)), FULL),
    "rgb24": (clip("RGB"), RGB),
    "rgb30": (clip("RGB", 10), RGB),
    "rgbs": (clip("RGB", 32, sample="float"), RGB),
}


class Grid:
    """The kernels over ordinary memory, as a slot runs them."""

    def __init__(self, form: ClipFormat, meaning: FrameColour, plan: TilePlan | None = None, lanes: int = 1):
        self.form, self.meaning, self.lanes = form, meaning, lanes
        self.plan = plan or tiles.plan(form.width, form.height, (64, 64), 16, 16, 8)
        self.library = compile_for_host(layouts.sample_macro(form), 0, sources.ALIGNMENT, SEEN, lanes)
        self.memory = {name: np.full(size, 0xAB, np.uint8) for name, size in buffers(form, SEEN).items()}
        self.tables = program.tables(self.plan, (16, 16))
        held = {**self.memory, **self.tables}
        addresses = {name: array.ctypes.data for name, array in held.items()}
        self.program = AlignmentProgram(form, self.plan, SEEN, "ycbcr", addresses)
        self.searched = SearchPlanes.of(form.width, form.height)
        self.frames = FrameMap(form, meaning, "ycbcr")

    def search(self, frames: Sequence[Planes], pairs: Pairs, threads: int = 1) -> None:
        staged = layouts.StagedFrame.of(self.form)
        memory = np.zeros((len(frames), staged.samples), layouts.sample_dtype(self.form))
        for row, frame in zip(memory, frames, strict=True):
            for view, plane in zip(staged.views(row), frame, strict=True):
                view[:] = plane
        for launch in self.program.search(self.meaning, [row.ctypes.data for row in memory], pairs):
            self.launch(launch, threads)

    def move(self, pairs: Pairs, first: int, count: int, threads: int = 1) -> np.ndarray:
        beside = np.full((count, 3, SEEN, self.plan.rows.side, self.plan.columns.side), np.nan, np.float32)
        self.launch(self.program.move(pairs, first, count, beside.ctypes.data), threads)
        return beside

    def launch(self, launch: program.Launch, threads: int) -> None:
        if self.lanes > 1 and launch.kernel != "search_blocks":
            threads = 1  # only there do lanes matter, and threads of a CPU are dear
        run = getattr(self.library, f"{launch.kernel}_launch")
        run(ctypes.c_void_p(launch.record.ctypes.data), *launch.grid, threads)

    @property
    def luma(self) -> np.ndarray:
        """frames, height, width."""
        rows = self.memory["luma"].view(np.float32).reshape(3 + 2 * K, self.form.height, -1)
        return rows[..., : self.form.width]

    def plane(self, memory: np.ndarray, index: int, margin: int) -> np.ndarray:
        """A plane of a prepared frame with so much of its padding."""
        plane = self.searched.planes[index]
        start = plane.origin - margin * plane.stride - margin
        rows = memory[start : start + (plane.height + 2 * margin) * plane.stride]
        return np.lib.stride_tricks.as_strided(
            rows, (plane.height + 2 * margin, plane.width + 2 * margin), (plane.stride, 1)
        )

    def prepared(self, frame: int) -> np.ndarray:
        size = self.searched.nbytes
        return self.memory["search"][frame * size : (frame + 1) * size]

    def vectors(self, pair: int) -> np.ndarray:
        rows, columns = self.searched.planes[0].blocks
        found = self.memory["vectors"].view(np.int16)
        return found[pair * rows * columns * 2 :][: rows * columns * 2].reshape(rows, columns, 2)

    def cpu_luma(self, planes: Planes) -> np.ndarray:
        out = torch.empty(self.form.height, self.form.width)
        self.frames.read_luma(planes, 0, 0, out)
        return out.numpy()

    def cpu_codes(self, planes: Planes) -> np.ndarray:
        codes = np.empty((self.form.height, self.form.width), np.uint8)
        search_luma(self.cpu_luma(planes), codes)
        return codes


def two(form: ClipFormat) -> tuple[list[Planes], Pairs]:
    """Two frames, each looked for in the other."""
    return [moving_frame(form, number) for number in range(2)], Pairs(((0, 1), (1, 0)), ((0, -1),) * 3 * SEEN)


@pytest.mark.parametrize("name", FORMATS)
def test_luma_and_what_is_searched_equal_the_cpu(name: str):
    form, meaning = FORMATS[name]
    frames, pairs = two(form)
    grid = Grid(form, meaning)
    grid.search(frames, pairs)
    aligner = Aligner(form.width, form.height)
    assert grid.searched.nbytes == aligner.allocate().nbytes
    for number, frame in enumerate(frames):
        np.testing.assert_allclose(grid.luma[number], grid.cpu_luma(frame), rtol=0, atol=2e-7)
        codes = grid.plane(grid.prepared(number), 0, 0)
        if form.family == "RGB":
            # A sum of three products: its last bit depends on the processor's instructions.
            assert (codes != grid.cpu_codes(frame)).mean() < 1e-3
        else:
            np.testing.assert_array_equal(codes, grid.cpu_codes(frame))
        expected = aligner.prepare(np.ascontiguousarray(codes))
        for index in range(len(grid.searched.planes)):
            ours, theirs = (grid.plane(memory, index, PAD - 1) for memory in (grid.prepared(number), expected))
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", FORMATS)
def test_vectors_equal_the_cpus_to_the_bit(name: str):
    form, meaning = FORMATS[name]
    frames, pairs = two(form)
    grid = Grid(form, meaning)
    grid.search(frames, pairs)
    aligner = Aligner(form.width, form.height)
    codes = [np.ascontiguousarray(grid.plane(grid.prepared(number), 0, 0)) for number in range(2)]
    prepared = [aligner.prepare(luma) for luma in codes]
    for pair, (own, other) in enumerate(pairs.moving):
        expected = aligner.search(prepared[own], prepared[other])
        np.testing.assert_array_equal(grid.vectors(pair), expected)
        if form.width > 32:
            assert len(np.unique(expected)) > 4, "frames must move for this to say something"
            assert (expected & 3).any()


def seen_on_cpu(form: ClipFormat, meaning: FrameColour, run: Run, plan: TilePlan) -> np.ndarray:
    """What the CPU shows of the neighbours in every tile: tiles, 3, SEEN, h, w."""
    frames, neighbours = FrameMap(form, meaning, "ycbcr"), Neighbours(form, SEEN)
    neighbours.begin(run, frames)
    found = torch.empty((plan.count, 3, SEEN, plan.rows.side, plan.columns.side))
    for index, (top, left) in enumerate(itertools.product(plan.rows.starts, plan.columns.starts)):
        own = torch.empty((3, 3, *found.shape[-2:]))
        for frame, planes in enumerate(run.frames):
            frames.read(planes, left, top, own[frame])
        neighbours.fill(left, top, own[:, 0], found[index])
    return found.numpy()


def run_of(form: ClipFormat, meaning: FrameColour, numbers: Sequence[int], wanted=(True, True, True)) -> Run:
    """A run whose sequence holds the frames with these numbers; a number that comes again is the same frame."""
    frames = {number: moving_frame(form, number) for number in set(numbers)}
    sequence = [frames[number] for number in numbers]
    targets = tuple(frame if want else None for frame, want in zip(sequence[K : K + 3], wanted, strict=True))
    around = {"before": tuple(sequence[:K]), "after": tuple(sequence[K + 3 :])}
    return Run(tuple(sequence[K : K + 3]), sequence[-1], targets, meaning, 37.0, "hevc", 4, **around)


def seen_on_grid(grid: Grid, run: Run, threads: int = 1) -> np.ndarray:
    sequence = (*run.before, *run.frames, *run.after)
    places: dict[tuple[int, ...], int] = {}
    for planes in sequence:
        places.setdefault(identity(planes), len(places))
    distinct = list({identity(planes): planes for planes in sequence}.values())
    pairs = Pairs.of([places[identity(p)] for p in sequence], [t is not None for t in run.targets], SEEN)
    grid.search(distinct, pairs, threads)
    return grid.move(pairs, 0, grid.plan.count, threads)


@pytest.mark.parametrize("name", FORMATS)
def test_neighbours_in_every_tile_equal_the_cpus(name: str):
    """Also in tiles that hang over the frame's edge, which is repeated there."""
    form, meaning = FORMATS[name]
    grid = Grid(form, meaning)
    run = run_of(form, meaning, range(3 + 2 * K))
    ours, theirs = seen_on_grid(grid, run), seen_on_cpu(form, meaning, run, grid.plan)
    if form.family == "RGB":
        # Where a code differs, a vector may: see above.
        assert (np.abs(ours - theirs) > 1e-5).mean() < 1e-3
    else:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


CUTS = {
    "all frames differ": (range(7), (True, True, True)),
    "the clip begins": ((0, 0, 0, 1, 2, 3, 4), (True, True, True)),
    "a cut before the last frame": ((0, 1, 2, 3, 3, 3, 3), (True, True, False)),
    "a cut after the first frame": ((3, 3, 3, 3, 4, 5, 6), (False, True, True)),
    "unwanted, and its neighbours are not those of another": ((0, 1, 2, 3, 4, 5, 6), (False, True, False)),
    "a clip of one frame": ((0,) * 7, (True, True, True)),
}


@pytest.mark.parametrize("name", CUTS)
def test_repeated_and_unwanted_frames_are_seen_as_the_cpu_sees_them(name: str):
    numbers, wanted = CUTS[name]
    form, meaning = FORMATS["yuv420p8"]
    grid = Grid(form, meaning)
    run = run_of(form, meaning, numbers, wanted)
    ours = seen_on_grid(grid, run)
    np.testing.assert_allclose(ours, seen_on_cpu(form, meaning, run, grid.plan), rtol=0, atol=1e-5)
    for frame, steps in itertools.product(range(3), enumerate(seen_steps(SEEN))):
        position, step = steps
        if numbers[K + frame] == numbers[K + frame + step]:
            own = torch.empty((3, *ours.shape[-2:]))
            grid.frames.read(run.frames[frame], 0, 0, own)
            np.testing.assert_array_equal(ours[0, frame, position], own[0], "the same frame is copied, not filtered")


def test_no_pair_is_searched_twice_and_nothing_for_frames_that_are_not_restored():
    every = Pairs.of(range(7), (True, True, True), SEEN)
    assert len(every.moving) == len(set(every.moving)) == 12
    assert every.seen[:5] == ((2, -1), (1, 0), (3, 1), (0, 2), (4, 3)), "0, -1, +1, -2, +2 of the frame at place 2"
    begins = Pairs.of((0, 0, 0, 1, 2, 3, 4), (True, True, True), SEEN)
    assert begins.moving == ((0, 1), (0, 2), (1, 0), (1, 2), (1, 3), (2, 1), (2, 3), (2, 0), (2, 4))
    assert begins.seen[1] == (0, -1) and begins.seen[6] == begins.seen[8] == (0, 2)
    alone = Pairs.of(range(7), (False, True, False), SEEN)
    assert len(alone.moving) == 4 and all(own == 3 for own, _ in alone.moving)
    assert alone.seen[:5] == ((2, -1),) * 5


def test_a_batch_holds_the_tiles_it_was_asked_for():
    form, meaning = FORMATS["yuv420p10"]
    grid = Grid(form, meaning)
    assert grid.plan.count > 3
    run = run_of(form, meaning, range(7))
    every = seen_on_grid(grid, run)
    pairs = Pairs.of(range(7), (True, True, True), SEEN)
    np.testing.assert_array_equal(grid.move(pairs, 1, 2), every[1:3])


def test_results_do_not_depend_on_the_block_size():
    form, meaning = clip(size=(40, 24)), LIMITED
    run = run_of(form, meaning, (0, 1, 2, 3, 2, 1, 0))
    one, four = (seen_on_grid(Grid(form, meaning), run, threads) for threads in (1, 4))
    np.testing.assert_array_equal(one, four)


def test_a_warp_that_compares_windows_together_finds_the_same():
    """What a GPU runs: 32 lanes share every window, and all of them learn the sum."""
    form, meaning = clip(size=(20, 16)), LIMITED
    frames, pairs = [moving_frame(form, number) for number in range(2)], Pairs(((0, 1),), ((0, -1),) * 3 * SEEN)
    alone, together = Grid(form, meaning), Grid(form, meaning, lanes=32)
    alone.search(frames, pairs)
    together.search(frames, pairs, threads=32)
    assert alone.vectors(0).any()
    np.testing.assert_array_equal(alone.vectors(0), together.vectors(0))


@pytest.mark.parametrize("seen", [2, 4, 6, 7])
def test_records_have_the_size_of_the_c_structures(seen: int):
    library = compile_for_host(16, 0, sources.ALIGNMENT, seen)
    for kernel, record in layouts.alignment_kernels(seen).items():
        assert record.itemsize == getattr(library, f"{kernel}_size")()


def test_memory_is_what_the_slots_say():
    for width, height in ((16, 16), (1921, 1081), (7680, 4320)):
        sizes = buffers(clip(size=(width, height)), SEEN)
        assert sum(sizes.values()) <= 8.8 * (3 + 2 * K) * (width + 256) * (height + 256)
