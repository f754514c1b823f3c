"""The state of some programs of a launch, and how they go on."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ptx.code import Fault, Instruction, Kernel

Lanes = NDArray[Any]
SHARED = 0
"""Where shared memory starts."""
PARAMETERS = 1 << 60
"""Where parameters lie, in generic addresses."""
CONSTANTS = 1 << 59
"""Where a module's own arrays lie, 2^32 apart."""
KINDS: dict[str, Any] = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64,
}  # fmt: skip
UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Descriptor(NamedTuple):
    """A tensor map of Hopper's copy engine: a matrix and the block that is moved at once, 128 bytes wide."""

    address: int
    high: int
    wide: int
    stride: int
    """Elements from row to row."""
    block: tuple[int, int]


# -- memory ------------------------------------------------------------------------------------------------------------


class Memory:
    """The GPU's memory: tensors of the host at their own addresses."""

    def __init__(self, tensors: Iterable[torch.Tensor]):
        stores = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t.numel()}
        self._starts = np.array(sorted(stores), np.uint64)
        self._bytes = [torch.empty(0, dtype=torch.uint8).set_(stores[int(s)]).numpy() for s in self._starts]
        self._ends = np.array([int(s) + b.size for s, b in zip(self._starts, self._bytes, strict=True)], np.uint64)

    def pieces(self, addresses: Lanes, size: int) -> Iterable[tuple[NDArray[np.uint8], Lanes, Lanes]]:
        """For each tensor that is met: its bytes, which of the addresses are in it, and their offsets."""
        if not addresses.size:
            return
        if (addresses % np.uint64(size)).any():
            raise Fault(
                f"misaligned access of {size} bytes at {int(addresses[addresses % np.uint64(size) != 0][0]):#x}"
            )
        place = np.searchsorted(self._starts, addresses, "right") - 1
        if (place < 0).any() or (addresses + np.uint64(size) > self._ends[place]).any():
            bad = (place < 0) | (addresses + np.uint64(size) > self._ends[place])
            raise Fault(f"{size} bytes at {int(addresses[bad][0]):#x} belong to no tensor that the kernel was given")
        for index in np.unique(place):
            here = np.flatnonzero(place == index)
            yield self._bytes[index], here, (addresses[here] - self._starts[index]).astype(np.int64)

    def load(self, addresses: Lanes, size: int, unit: int) -> Lanes:
        """``size`` bytes at each address as (addresses, size / unit) numbers of ``unit`` bytes."""
        found = np.zeros((addresses.size, size // unit), UNSIGNED[unit])
        for store, here, offsets in self.pieces(addresses, size):
            numbers = store[: store.size // unit * unit].view(UNSIGNED[unit])
            found[here] = numbers[(offsets // unit)[:, None] + np.arange(size // unit)]
        return found

    def store(self, addresses: Lanes, values: Lanes) -> None:
        """As `load`."""
        unit = values.dtype.itemsize
        for store, here, offsets in self.pieces(addresses, values.shape[1] * unit):
            numbers = store[: store.size // unit * unit].view(values.dtype)
            numbers[(offsets // unit)[:, None] + np.arange(values.shape[1])] = values[here]


@dataclass(slots=True)
class _Way:
    """Threads that go together."""

    at: int
    meeting: int
    """Where the way ends because others meet them."""
    threads: Lanes


@dataclass(slots=True)
class _Late:
    """Work that has been asked for and not waited for."""

    where: Lanes
    """Threads that asked."""
    group: Lanes
    """Of each thread: how many of its groups were closed before."""
    work: Callable[[Lanes], None]


@dataclass(slots=True)
class Barrier:
    """An mbarrier."""

    expected: int
    pending: int
    bytes: int = 0
    phase: int = 0
    loads: list[Callable[[], int]] = field(default_factory=list)


class Machine:
    """Some programs of a launch, in lockstep."""

    def __init__(self, kernel: Kernel, programs: NDArray[np.int64], grid: tuple[int, int, int], memory: Memory,
                 parameters: list[Any], shared: int, threads: int):  # fmt: skip
        self.kernel, self.memory, self.count = kernel, memory, len(programs) * threads
        self.parameters = dict(zip(kernel.parameters, parameters, strict=True))
        self.size = max(16, -(-shared // 16) * 16)
        self.shared = np.full(len(programs) * self.size, 0xFF, np.uint8)
        self.unfenced = np.zeros(self.shared.size, bool)
        """Bytes that threads have written since the last fence between them and what reads on its own (proxies)."""
        self.program = np.repeat(np.arange(len(programs)), threads)
        thread = np.tile(np.arange(threads, dtype=np.uint32), len(programs))
        places = np.repeat(programs, threads)
        self.special: dict[str, Any] = {
            "%tid.x": thread,
            "%laneid": thread & np.uint32(31),
            "%ntid.x": np.uint32(threads),
        }
        for axis, letter in enumerate("xyz"):
            before = int(np.prod(grid[:axis]))
            self.special[f"%ctaid.{letter}"] = (places // before % grid[axis]).astype(np.uint32)
            self.special[f"%nctaid.{letter}"] = np.uint32(grid[axis])
            if axis:
                self.special[f"%tid.{letter}"], self.special[f"%ntid.{letter}"] = np.uint32(0), np.uint32(1)
        self.registers: dict[str, Lanes] = {}
        self.active: Lanes = np.ones(self.count, bool)
        self.all = True
        self.late: dict[str, list[_Late]] = {"copy": [], "wgmma": [], "bulk": []}
        self.closed = {kind: np.zeros(self.count, np.int64) for kind in self.late}
        self.barriers: dict[int, Barrier] = {}

    def run(self) -> None:
        """From the first instruction to the last program's end.

        Threads that a branch parts go one side after the other and meet where all ways from the branch do.
        """
        code, end = self.kernel.code, len(self.kernel.code)
        ways = [_Way(0, end, np.ones(self.count, bool))]
        with np.errstate(all="ignore"):
            while ways:
                way = ways[-1]
                if way.at == way.meeting or not way.threads.any():
                    ways.pop()
                    continue
                self.active, self.all = way.threads, bool(way.threads.all())
                while way.at != way.meeting:
                    instruction = code[way.at]
                    way.at += 1
                    if instruction.name in ("bra", "ret", "exit"):
                        self._leave(instruction, ways)
                        break
                    try:
                        self._step(instruction)
                    except Fault as fault:
                        raise Fault(f"{fault}; at {instruction.text!r}") from fault
                    except Exception as error:
                        raise Fault(f"at {instruction.text!r}: {error!r}") from error
            self.active, self.all = np.ones(self.count, bool), True
            for kind in self.late:
                self.wait(kind, 0, closed_only=False)

    def _leave(self, instruction: Instruction, ways: list["_Way"]) -> None:
        """A branch or an end of the threads whose way is the last."""
        way = ways[-1]
        gone = way.threads
        if instruction.predicate:
            chosen = self.get(instruction.predicate, "pred")
            gone = gone & (~chosen if instruction.negated else chosen)
        if instruction.name != "bra":
            for one in ways:
                one.threads = one.threads & ~gone
            return
        target, left = self.kernel.labels[instruction.operands[-1]], way.threads & ~gone
        if not left.any():
            way.at = target
        elif gone.any():
            meeting = self.kernel.meeting(way.at - 1)
            here, way.at = way.at, meeting
            ways.append(_Way(here, meeting, left))
            ways.append(_Way(target, meeting, gone))

    def _step(self, instruction: Instruction) -> None:
        """Run an instruction that is no branch."""
        assert instruction.run is not None, "prepared before"
        if not instruction.predicate:
            instruction.run(self)
            return
        before, whole = self.active, self.all
        chosen = self.get(instruction.predicate, "pred")
        self.active = before & (~chosen if instruction.negated else chosen)
        self.all = whole and bool(self.active.all())
        if self.active.any():
            instruction.run(self)
        self.active, self.all = before, whole

    # -- registers -----------------------------------------------------------------------------------------------------

    def get(self, operand: str, kind: str) -> Any:
        """An operand's value as a kind: an array of all threads, or a number."""
        if operand in self.registers:
            value: Any = self.registers[operand]
        elif operand in self.special:
            value = self.special[operand]
        elif operand == "global_smem":
            value = np.uint32(SHARED)
        elif operand in self.parameters:
            return np.uint64(PARAMETERS + self.kernel.parameters.index(operand))
        elif operand in self.kernel.constants:
            return np.uint64(CONSTANTS + (list(self.kernel.constants).index(operand) << 32))
        elif operand.startswith("%"):
            value = self._unwritten(operand)
        else:
            return _immediate(operand, kind)
        if kind == "pred":
            return value
        wanted = np.dtype(KINDS[kind])
        if value.dtype.itemsize != wanted.itemsize:  # of another register: its numbers, without a sign
            value = value.astype(UNSIGNED[wanted.itemsize])
        return value.view(wanted)

    def each(self, operand: str, kind: str) -> Lanes:
        """As `get`, one number a thread, one behind the other."""
        return np.ascontiguousarray(np.broadcast_to(self.get(operand, kind), self.count))

    def put(self, operand: str, value: Any) -> None:
        """Write a register of the active threads."""
        if operand == "_":
            return
        value = np.asarray(value)
        if value.dtype != bool:
            value = value.view(UNSIGNED[value.dtype.itemsize])
            size = self.width(operand)
            if value.dtype.itemsize != size:
                value = value.astype(UNSIGNED[size])
        if self.all:
            self.registers[operand] = np.broadcast_to(value, self.count)
            return
        old = self.registers.get(operand)
        self.registers[operand] = np.where(self.active, value, self._unwritten(operand) if old is None else old)

    def width(self, register: str) -> int:
        """Bytes of a register; 0 for a predicate."""
        kinds = self.kernel.registers
        kind = kinds.get(register) or kinds[re.sub(r"\d+$", "", register)]
        return 0 if kind == "pred" else int(kind[1:]) // 8

    def _unwritten(self, register: str) -> Lanes:
        """What may be anything: NaN."""
        width = self.width(register)
        return np.ones(self.count, bool) if not width else np.full(self.count, -1).astype(UNSIGNED[width])

    # -- memory --------------------------------------------------------------------------------------------------------

    def addresses(self, operand: str, kind: str) -> Lanes:
        """Addresses in brackets."""
        inner = operand.strip("[] ")
        base, _, offset = inner.partition("+")
        value = self.each(base.strip(), kind)
        return value + _immediate(offset.strip() or "0", kind)

    def in_shared(self, offsets: Lanes, programs: Lanes, size: int) -> Lanes:
        """Places in `shared` of byte offsets in programs' own."""
        offsets = offsets.astype(np.int64)
        if (offsets + size > self.size).any() or (offsets % size).any():
            bad = (offsets + size > self.size) | (offsets % size != 0)
            raise Fault(f"{size} bytes of shared memory at {int(offsets[bad][0])} of {self.size}")
        return programs * self.size + offsets

    def load_shared(self, offsets: Lanes, programs: Lanes, size: int, unit: int) -> Lanes:
        """As `Memory.load`."""
        at = self.in_shared(offsets, programs, size) // unit
        found: Lanes = self.shared.view(UNSIGNED[unit])[at[..., None] + np.arange(size // unit)]
        return found

    def store_shared(self, offsets: Lanes, programs: Lanes, values: Lanes, by_threads: bool = True) -> None:
        """As `Memory.store`. ``by_threads``: not by the copy engine."""
        unit = values.dtype.itemsize
        places = self.in_shared(offsets, programs, values.shape[-1] * unit)
        self.shared.view(values.dtype)[places[..., None] // unit + np.arange(values.shape[-1])] = values
        self.unfenced[places[..., None] + np.arange(values.shape[-1] * unit)] = by_threads

    def fence(self) -> None:
        """What threads have written is there for what reads on its own: the copy engine, wgmma."""
        self.unfenced.reshape(-1, self.size)[np.unique(self.program[self.active])] = False

    def check_fenced(self, offsets: Callable[[], Lanes], programs: Lanes, size: int) -> None:
        """That what reads on its own may read this."""
        if self.unfenced.any() and self.unfenced[self.in_shared(offsets(), programs, size)].any():
            raise Fault("shared memory that threads wrote is read by another proxy without a fence between")

    # -- what is asynchronous ------------------------------------------------------------------------------------------

    def ask(self, kind: str, work: Callable[[Lanes], None], where: Lanes | None = None) -> None:
        """Work that is done when these threads (the active ones) wait for it."""
        where = self.active if where is None else where
        self.late[kind].append(_Late(where.copy(), self.closed[kind].copy(), work))

    def close(self, kind: str) -> None:
        """Close a group."""
        self.closed[kind] = self.closed[kind] + self.active

    def wait(self, kind: str, open_groups: int, closed_only: bool = True) -> None:
        """Do what was asked for, but for the last groups."""
        kept = []
        for late in self.late[kind]:
            ready = late.where & self.active
            if closed_only:
                ready &= late.group < self.closed[kind] - open_groups
            if ready.any():
                late.work(ready)
                late.where = late.where & ~ready
            if late.where.any():
                kept.append(late)
        self.late[kind] = kept

    def warps(self) -> Lanes:
        """Threads of the active warps: warps, 32. All of a warp take part."""
        warps = np.flatnonzero(self.active).reshape(-1, 32)
        if (warps[:, 0] % 32).any() or (warps[:, 31] != warps[:, 0] + 31).any():
            raise Fault("some threads of a warp are missing")
        return warps


def _immediate(operand: str, kind: str) -> Any:
    if operand.startswith("0f"):
        bits = np.uint32(int(operand[2:], 16))
        return bits.view(np.float32) if kind == "f32" else bits
    if operand.startswith("0x"):
        number = int(operand.rstrip("U"), 16)
    elif re.fullmatch(r"-?\d+", operand):
        number = int(operand)
    else:
        raise Fault(f"operand {operand!r}")
    if kind == "pred":
        return np.bool_(number != 0)
    wanted = np.dtype(KINDS[kind])
    return UNSIGNED[wanted.itemsize](number % (1 << 8 * wanted.itemsize)).view(wanted)
