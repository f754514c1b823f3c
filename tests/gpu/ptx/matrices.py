"""What instructions of a warp, a warp group and the copy engines do."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch

from ptx.code import Fault, Instruction, several
from ptx.machine import PARAMETERS, UNSIGNED, Barrier, Descriptor, Lanes, Machine


def halves(words: Lanes, brain: bool) -> Lanes:
    """uint16 -> float32."""
    if brain:
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return words.view(np.float16).astype(np.float32)


def _shfl(i: Instruction) -> Callable[[Machine], None]:
    mode, o = i.parts[1], i.operands
    first, _, second = o[0].partition("|")

    def run(m: Machine) -> None:
        value = m.each(o[1], "b32").reshape(-1, 32)
        by, clamp = (m.each(x, "u32").reshape(-1, 32).astype(np.int64) for x in o[2:4])
        lane = np.arange(32)
        segment = clamp >> 8 & 31
        highest = lane & segment | clamp & 31 & ~segment
        lowest = lane & segment
        if mode == "idx":
            source = lowest | by & 31 & ~segment
            there = source <= highest
        elif mode == "bfly":
            source = lane ^ by & 31
            there = source <= highest
        elif mode == "down":
            source = lane + (by & 31)
            there = source <= highest
        else:
            source = lane - (by & 31)
            there = source >= (clamp & 31)
        source = np.where(there, source, lane)
        if not m.active.reshape(-1, 32)[np.arange(len(value))[:, None], source][m.active.reshape(-1, 32)].all():
            raise Fault("a shuffle reads a thread that takes no part")
        m.put(first, np.take_along_axis(value, source, 1).ravel())
        if second:
            m.put(second, np.broadcast_to(there, value.shape).ravel())

    return run


def _ldmatrix(i: Instruction) -> Callable[[Machine], None]:
    names, turned = several(i.operands[0]), "trans" in i.parts

    def run(m: Machine) -> None:
        warps = m.warps()
        number = len(names)
        at = m.addresses(i.operands[1], "u32")[warps[:, : 8 * number]]
        rows = m.load_shared(at, m.program[warps[:, : 8 * number]], 16, 2)
        tiles = rows.reshape(len(warps), number, 8, 8)  # matrix, row, column
        if turned:
            tiles = tiles.swapaxes(2, 3)
        words = np.ascontiguousarray(tiles).view(np.uint32).reshape(len(warps), number, 32)
        for index, name in enumerate(names):
            made = np.zeros(m.count, np.uint32)
            made[warps] = words[:, index]
            m.put(name, made)

    return run


def _stmatrix(i: Instruction) -> Callable[[Machine], None]:
    names, turned = several(i.operands[1]), "trans" in i.parts

    def run(m: Machine) -> None:
        warps = m.warps()
        number = len(names)
        at = m.addresses(i.operands[0], "u32")[warps[:, : 8 * number]]
        words = np.stack([m.each(name, "b32")[warps] for name in names], 1)
        tiles = words.view(np.uint16).reshape(len(warps), number, 8, 8)
        if turned:
            tiles = tiles.swapaxes(2, 3)
        rows = np.ascontiguousarray(tiles).reshape(len(warps), 8 * number, 8)
        m.store_shared(at, m.program[warps[:, : 8 * number]], rows)

    return run


def _product(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    found: Lanes = torch.baddbmm(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (c, a, b))).numpy()
    return found


def _mma(i: Instruction) -> Callable[[Machine], None]:
    if i.parts[2] != "m16n8k16" or i.parts[6] not in ("f16", "bf16") or i.parts[-1] != "f32":
        raise Fault(f"instruction {i.text!r}")
    brain = i.parts[6] == "bf16"
    to, a, b, c = (several(o) for o in i.operands[:4])

    def pairs(m: Machine, warps: Lanes, name: str) -> Lanes:
        """Of a register of two: warps, 8, 8."""
        words = np.ascontiguousarray(m.each(name, "b32")[warps])
        return halves(words.view(np.uint16), brain).reshape(-1, 8, 8)

    def run(m: Machine) -> None:
        warps = m.warps()
        first = np.empty((len(warps), 16, 16), np.float32)
        for index, name in enumerate(a):
            first[:, index % 2 * 8 : index % 2 * 8 + 8, index // 2 * 8 : index // 2 * 8 + 8] = pairs(m, warps, name)
        second = np.concatenate([pairs(m, warps, name) for name in b], 2).swapaxes(1, 2)
        third = np.empty((len(warps), 16, 8), np.float32)
        for index, name in enumerate(c):
            third.reshape(-1, 2, 8, 4, 2)[:, index // 2, :, :, index % 2] = (
                m.each(name, "f32")[warps].reshape(-1, 8, 4)
            )  # fmt: skip
        made = _product(first, second, third).reshape(-1, 2, 8, 4, 2)
        for index, name in enumerate(to):
            values = np.zeros(m.count, np.float32)
            values[warps] = made[:, index // 2, :, :, index % 2].reshape(-1, 32)
            m.put(name, values)

    return run


def _cp(i: Instruction) -> Callable[[Machine], None]:
    word = ".".join(i.parts)
    o = i.operands
    if word == "async.commit_group":
        return lambda m: m.close("copy")
    if word == "async.wait_group":
        return lambda m: m.wait("copy", int(o[0]))
    if word == "async.wait_all":
        return lambda m: m.wait("copy", 0, closed_only=False)
    if word.startswith("async.bulk.commit_group"):
        return lambda m: m.close("bulk")
    if word.startswith("async.bulk.wait_group"):
        return lambda m: m.wait("bulk", int(o[0]))
    if word.startswith("async.bulk.tensor.2d.global"):
        return _tensor_store(i)
    if word.startswith("async.bulk.tensor.2d.shared"):
        return _tensor_load(i)
    if not word.startswith(("async.cg.shared.global", "async.ca.shared.global")):
        raise Fault(f"instruction {i.text!r}")

    def run(m: Machine) -> None:
        to, source = m.addresses(o[0], "u32"), m.addresses(o[1], "u64")
        size = int(m.get(o[2], "u32"))
        given = m.each(o[3] if len(o) > 3 else o[2], "u32")
        if not np.isin(given[m.active], (0, size)).all():
            raise Fault(f"part of a copy: {i.text!r}")

        def work(ready: Lanes) -> None:
            unit = min(4, size)
            some, none = np.flatnonzero(ready & (given > 0)), np.flatnonzero(ready & (given == 0))
            m.store_shared(to[some], m.program[some], m.memory.load(source[some], size, unit))
            m.store_shared(to[none], m.program[none], np.zeros((none.size, size // unit), UNSIGNED[unit]))

        m.ask("copy", work)

    return run


class _Move(NamedTuple):
    """A block on its way: eight numbers each."""

    programs: Lanes
    """Whose shared memory it is, over and over."""
    places: Lanes
    """Of bytes there."""
    addresses: Lanes
    inside: Lanes
    """Which are in the matrix."""


def _moves(m: Machine, i: Instruction, shared: str, matrix: str) -> Iterator[tuple[int, _Move]]:
    """The blocks that an instruction of the copy engine moves, and the threads that ask for them.

    shared: operand with the offset in shared memory; matrix: with the descriptor, x and y.
    """
    base, _, at = matrix.strip("[] ").partition(",")
    for thread in np.flatnonzero(m.active).tolist():
        offset = int(m.addresses(shared, "u32")[thread])
        number = int(m.each(base.strip(), "u64")[thread]) - PARAMETERS
        descriptor = m.parameters[m.kernel.parameters[number]]
        if not isinstance(descriptor, Descriptor):
            raise Fault("no descriptor")
        down, across = descriptor.block
        if across != 64 or offset % 1024 or descriptor.wide % 8:
            raise Fault(f"{descriptor} at {offset}: only blocks 128 bytes wide, at 1024, of whole eights are known")
        x, y = (int(m.each(p, "s32")[thread]) for p in several(at))
        rows, columns = np.meshgrid(np.arange(down), np.arange(0, across, 8), indexing="ij")
        linear = offset + rows * 128 + columns * 2
        row, column = (rows + y).ravel(), (columns + x).ravel()
        inside = (row >= 0) & (row < descriptor.high) & (column >= 0) & (column < descriptor.wide)
        addresses = descriptor.address + (row * descriptor.stride + column) * 2
        places = _swizzled(linear, WHOLE).ravel()
        yield thread, _Move(np.full(places.size, m.program[thread]), places, addresses, inside)


def _tensor_load(i: Instruction) -> Callable[[Machine], None]:
    def run(m: Machine) -> None:
        for thread, move in _moves(m, i, i.operands[0], i.operands[1]):

            def work(move: _Move = move) -> int:
                values = np.zeros((move.places.size, 8), np.uint16)
                values[move.inside] = m.memory.load(move.addresses[move.inside].astype(np.uint64), 16, 2)
                m.store_shared(move.places, move.programs, values, by_threads=False)
                return values.nbytes

            _barrier(m, i.operands[2], thread).loads.append(work)

    return run


def _tensor_store(i: Instruction) -> Callable[[Machine], None]:
    def run(m: Machine) -> None:
        for thread, move in _moves(m, i, i.operands[1], i.operands[0]):
            m.check_fenced(lambda move=move: move.places, move.programs, 16)

            def work(_: Lanes, move: _Move = move) -> None:
                values = m.load_shared(move.places, move.programs, 16, 2)
                m.memory.store(move.addresses[move.inside].astype(np.uint64), values[move.inside])

            m.ask("bulk", work, np.arange(m.count) == thread)

    return run


def _barrier(m: Machine, operand: str, thread: int) -> Barrier:
    at = int(m.program[thread]) * m.size + int(m.addresses(operand, "u32")[thread])
    if at not in m.barriers:
        raise Fault("an mbarrier that is none")
    return m.barriers[at]


def _mbarrier(i: Instruction) -> Callable[[Machine], None]:
    o, word = i.operands, ".".join(i.parts)

    def settle(barrier: Barrier) -> None:
        if not barrier.pending and not barrier.bytes:
            barrier.phase, barrier.pending = barrier.phase ^ 1, barrier.expected

    def run(m: Machine) -> None:
        done = np.zeros(m.count, bool)
        for thread in np.flatnonzero(m.active).tolist():
            if word.startswith("init"):
                at = int(m.program[thread]) * m.size + int(m.addresses(o[0], "u32")[thread])
                m.barriers[at] = Barrier(int(o[1]), int(o[1]))
            elif word.startswith("inval"):
                if _barrier(m, o[0], thread).loads:
                    raise Fault("an mbarrier is given up while it is waited for")
            elif word.startswith("arrive.expect_tx"):
                barrier = _barrier(m, o[1], thread)
                barrier.bytes += int(m.each(o[2], "u32")[thread])
                barrier.pending -= 1
                settle(barrier)
            elif word.startswith("try_wait.parity"):
                barrier = _barrier(m, o[1], thread)
                for load in barrier.loads:
                    barrier.bytes -= load()
                barrier.loads.clear()
                settle(barrier)
                done[thread] = barrier.phase != int(m.each(o[2], "u32")[thread]) % 2
                if not done[thread]:
                    raise Fault("an mbarrier that nothing will complete is waited for")
            else:
                raise Fault(f"instruction {i.text!r}")
        if word.startswith("try_wait"):
            m.put(o[0], done)

    return run


def _elect(i: Instruction) -> Callable[[Machine], None]:
    _, _, chosen = i.operands[0].partition("|")
    return lambda m: m.put(chosen, m.special["%laneid"] == 0)


WHOLE: Final = 1
"""The swizzle of rows of 128 bytes."""


def _swizzled(at: Lanes, mode: int) -> Lanes:
    """Offsets in shared memory as wgmma and the copy engine take them; mode: of the matrix descriptor."""
    bits = {0: 0, 1: 7, 2: 3, 3: 1}[mode]
    return at ^ (at >> 7 & bits) << 4


def _places(descriptors: Lanes, rows: int, turned: bool) -> Lanes:
    """Where in shared memory a matrix lies, as (groups, rows, 16). turned: rows lie side by side."""
    number = descriptors.astype(np.int64)
    mode = int(descriptors[0] >> np.uint64(62))
    start = (number & 0x3FFF) << 4
    leading, stride = (number >> 16 & 0x3FFF) << 4, (number >> 32 & 0x3FFF) << 4
    width = {0: 16, 1: 128, 2: 64, 3: 32}[mode]
    row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
    if turned:
        side = width // 2
        at = row // side * leading[:, None, None] + k // 8 * stride[:, None, None] + k % 8 * width + row % side * 2
    elif mode:
        at = row // 8 * stride[:, None, None] + row % 8 * width + k * 2
    else:
        at = row // 8 * stride[:, None, None] + k // 8 * leading[:, None, None] + row % 8 * 16 + k % 8 * 2
    return _swizzled(start[:, None, None] + at, mode)


def _operand(m: Machine, descriptors: Lanes, programs: Lanes, rows: int, turned: bool) -> Lanes:
    """A matrix in shared memory, as `_places` has it."""
    return m.load_shared(_places(descriptors, rows, turned), programs[:, None, None], 2, 2)[..., 0]


def _wgmma(i: Instruction) -> Callable[[Machine], None]:
    if i.parts[0] == "fence":
        return lambda m: None
    if i.parts[0] == "commit_group":
        return lambda m: m.close("wgmma")
    if i.parts[0] == "wait_group":
        return lambda m: m.wait("wgmma", int(i.operands[0]))
    shape = re.fullmatch(r"m64n(\d+)k16", i.parts[3])
    if shape is None or i.parts[4] != "f32" or i.parts[5] not in ("f16", "bf16"):
        raise Fault(f"instruction {i.text!r}")
    columns, brain = int(shape[1]), i.parts[5] == "bf16"
    to, a, b, add, *rest = i.operands
    totals = several(to)
    from_registers = a.startswith("{")
    if rest[:2] != ["1", "1"]:
        raise Fault(f"signs: {i.text!r}")
    turned = [int(t) for t in rest[2:]]
    turned_a, turned_b = (0, turned[0]) if from_registers else turned

    def groups(which: Lanes) -> Lanes:
        found = np.flatnonzero(which).reshape(-1, 128)
        if (found[:, 0] % 128).any() or (found[:, 127] != found[:, 0] + 127).any():
            raise Fault("some threads of a warp group are missing")
        return found

    def run(m: Machine) -> None:
        first = None if from_registers else m.each(a, "u64")
        second = m.each(b, "u64")
        added = m.each(add, "pred")
        asked = groups(m.active)[:, 0]
        for descriptors, rows, by in ((first, 64, turned_a), (second, columns, turned_b)):
            if descriptors is not None:
                places = partial(_places, descriptors[asked], rows, bool(by))
                m.check_fenced(places, m.program[asked][:, None, None], 2)

        def work(ready: Lanes) -> None:
            whole = groups(ready)
            programs = m.program[whole[:, 0]]
            if first is None:
                left: Lanes = np.empty((len(whole), 4, 16, 16), np.float32)
                for index, name in enumerate(several(a)):
                    words = np.ascontiguousarray(m.each(name, "b32")[whole])
                    down, right = index % 2 * 8, index // 2 * 8
                    quarter = halves(words.view(np.uint16), brain).reshape(-1, 4, 8, 8)
                    left[:, :, down : down + 8, right : right + 8] = quarter
                left = left.reshape(-1, 64, 16)
            else:
                left = halves(_operand(m, first[whole[:, 0]], programs, 64, bool(turned_a)), brain)
            right_side = halves(_operand(m, second[whole[:, 0]], programs, columns, bool(turned_b)), brain)
            total: Lanes = np.zeros((len(whole), 4, 2, 8, columns // 8, 4, 2), np.float32)
            for index, name in enumerate(totals):  # warp, half, row, eighth, pair, of pair
                value = m.each(name, "f32")[whole].reshape(-1, 4, 8, 4)
                total[:, :, index // 2 % 2, :, index // 4, :, index % 2] = value
            total[~added[whole[:, 0]]] = 0  # whatever was there
            made = _product(left, right_side.swapaxes(1, 2), total.reshape(-1, 64, columns)).reshape(total.shape)
            before, every = m.active, m.all
            m.active, m.all = ready, bool(ready.all())
            for index, name in enumerate(totals):
                values = np.zeros(m.count, np.float32)
                values[whole] = made[:, :, index // 2 % 2, :, index // 4, :, index % 2].reshape(-1, 128)
                m.put(name, values)
            m.active, m.all = before, every

        m.ask("wgmma", work)

    return run


MAKERS: Final[dict[str, Callable[[Instruction], Callable[[Machine], None]]]] = {
    "shfl": _shfl, "ldmatrix": _ldmatrix, "stmatrix": _stmatrix, "mma": _mma, "cp": _cp, "mbarrier": _mbarrier,
    "elect": _elect, "wgmma": _wgmma,
}  # fmt: skip
"""What makes functions of instructions, by name."""
