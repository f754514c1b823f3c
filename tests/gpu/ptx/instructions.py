"""What instructions of a thread do, and which function makes what of any instruction."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from ptx import matrices
from ptx.code import Fault, Instruction, Kernel, several
from ptx.machine import CONSTANTS, KINDS, UNSIGNED, Lanes, Machine
from ptx.matrices import halves


def prepare(kernel: Kernel) -> Kernel:
    """Give a kernel's instructions what they do. Raises Fault for one that is not known."""
    for instruction in kernel.code:
        if instruction.run is None and instruction.name not in ("bra", "ret", "exit"):
            instruction.run = _compile(instruction)
    return kernel


def _to_half(values: Lanes, brain: bool) -> Lanes:
    """float32 -> uint16, to the nearest even."""
    if not brain:
        return values.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _divide(a: Any, b: Any) -> tuple[Any, Any]:
    """Quotient, to zero, and remainder."""
    b = np.where(b == 0, b.dtype.type(1), b)
    if np.issubdtype(b.dtype, np.unsignedinteger):
        return a // b, a % b
    sign = np.sign(a) * np.sign(b)
    quotient = (sign * (abs(a) // abs(b))).astype(b.dtype)
    return quotient, (a - quotient * b).astype(b.dtype)


def _fma(a: Any, b: Any, c: Any) -> Any:
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def _shift(a: Any, b: Any, left: bool) -> Any:
    bits = 8 * np.asarray(a).dtype.itemsize
    count = np.minimum(b, np.uint32(bits - 1)).astype(np.asarray(a).dtype)
    moved = a << count if left else a >> count
    if left or np.issubdtype(np.asarray(a).dtype, np.unsignedinteger):
        return np.where(b >= bits, np.asarray(a).dtype.type(0), moved)
    return moved


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "min": lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b),
    "max": lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
}
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "neu": lambda a, b: ~(a == b),
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
    "lo": lambda a, b: a < b,
    "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
}
UNARY: dict[str, Callable[[Any], Any]] = {
    "abs": abs,
    "neg": lambda a: -a,
    "not": lambda a: ~a,
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda a: np.float32(1) / a,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: np.float32(1) / np.sqrt(a),
}
HALVES = ("f16", "bf16", "f16x2", "bf16x2")
NOTHING = {"bar", "fence", "barrier", "membar", "griddepcontrol", "prefetch", "createpolicy"}
"""In lockstep there is nothing to wait for. (A fence between proxies is another matter.)"""


def _compile(i: Instruction) -> Callable[[Machine], None]:
    """What an instruction does."""
    maker = _MAKERS.get(i.name)
    if i.name == "fence" and "async" in i.parts:
        return lambda m: m.fence()
    if i.name in NOTHING:
        return lambda m: None
    if maker is not None:
        return maker(i)
    return _plain(i)


def _plain(i: Instruction) -> Callable[[Machine], None]:
    """What makes one number, or two, of as many in each operand."""
    operation: Any = UNARY.get(i.name) or BINARY.get(i.name)
    if operation is None:
        raise Fault(f"instruction {i.text!r}")
    kind, o = i.parts[-1], i.operands
    if kind in ("f16", "bf16") and "f32" in i.parts:  # a half and a single make a single
        return lambda m: m.put(o[0], operation(halves(m.each(o[1], "b16"), kind == "bf16"), m.get(o[2], "f32")))
    if kind in HALVES:
        return _in_halves(i, operation)
    if kind.endswith("x2"):
        return _paired(i, operation)
    if i.name in UNARY:
        return lambda m: m.put(o[0], _flush(operation(m.get(o[1], kind)), "ftz" in i.parts))
    return lambda m: m.put(o[0], reduce(operation, (m.get(one, kind) for one in o[1:])))


def _flush(value: Any, ftz: bool) -> Any:
    """Numbers below the least normal one are nothing, where an instruction says so."""
    return np.where(abs(value) < np.finfo(np.float32).tiny, np.float32(0), value) if ftz else value


def _paired(i: Instruction, operation: Callable[..., Any]) -> Callable[[Machine], None]:
    """Of two numbers in a register."""
    element = {"s16x2": np.int16, "u16x2": np.uint16, "f32x2": np.float32}[i.parts[-1]]
    whole = "b64" if element == np.float32 else "b32"

    def run(m: Machine) -> None:
        values = [m.each(o, whole).view(element).reshape(m.count, 2) for o in i.operands[1:]]
        made = np.ascontiguousarray(operation(*values)).astype(element)
        m.put(i.operands[0], made.view(KINDS[whole])[:, 0])

    return run


def _in_halves(i: Instruction, operation: Callable[..., Any]) -> Callable[[Machine], None]:
    """Of one half or two in a register, rounded once."""
    kind = i.parts[-1]
    whole, brain = ("b32" if kind.endswith("x2") else "b16"), kind.startswith("b")

    def run(m: Machine) -> None:
        values = [halves(m.each(o, whole).view(np.uint16), brain).astype(np.float64) for o in i.operands[1:]]
        made = _to_half(np.ascontiguousarray(operation(*values)).astype(np.float32), brain)
        m.put(i.operands[0], made.view(KINDS[whole]))

    return run


def _mul(i: Instruction) -> Callable[[Machine], None]:
    kind, o = i.parts[-1], i.operands
    if "wide" in i.parts:
        wide = kind[0] + str(2 * int(kind[1:]))
        return lambda m: m.put(o[0], m.get(o[1], kind).astype(KINDS[wide]) * m.get(o[2], kind).astype(KINDS[wide]))
    if "hi" in i.parts:
        bits = int(kind[1:])
        wide = kind[0] + str(2 * bits)
        return lambda m: m.put(
            o[0],
            (m.get(o[1], kind).astype(KINDS[wide]) * m.get(o[2], kind).astype(KINDS[wide]) >> KINDS[wide](bits))
            .astype(KINDS[kind]),
        )  # fmt: skip
    return _plain(i)


def _mad(i: Instruction) -> Callable[[Machine], None]:
    kind, o = i.parts[-1], i.operands
    if "wide" in i.parts:
        wide = kind[0] + str(2 * int(kind[1:]))
        return lambda m: m.put(
            o[0],
            m.get(o[1], kind).astype(KINDS[wide]) * m.get(o[2], kind).astype(KINDS[wide]) + m.get(o[3], wide),
        )
    return lambda m: m.put(o[0], m.get(o[1], kind) * m.get(o[2], kind) + m.get(o[3], kind))


def _multiply_add(i: Instruction) -> Callable[[Machine], None]:
    kind, o = i.parts[-1], i.operands
    ftz = "ftz" in i.parts
    if kind in ("f16", "bf16") and "f32" in i.parts:  # two halves and a single make a single

        def mixed(m: Machine) -> None:
            a, b = (halves(m.each(x, "b16"), kind == "bf16") for x in o[1:3])
            m.put(o[0], _fma(a, b, m.get(o[3], "f32")))

        return mixed
    if kind in HALVES or kind.endswith("x2"):
        of = _in_halves if kind in HALVES else _paired
        return of(i, lambda a, b, c: a.astype(np.float64) * b + c)
    return lambda m: m.put(o[0], _flush(_fma(*(m.get(x, kind) for x in o[1:4])), ftz))


def _div(i: Instruction) -> Callable[[Machine], None]:
    kind, o = i.parts[-1], i.operands
    if kind[0] == "f":
        return lambda m: m.put(o[0], m.get(o[1], kind) / m.get(o[2], kind))
    which = i.name == "rem"
    return lambda m: m.put(o[0], _divide(m.get(o[1], kind), m.get(o[2], kind))[which])


def _shifts(i: Instruction) -> Callable[[Machine], None]:
    kind, o = i.parts[-1], i.operands
    return lambda m: m.put(o[0], _shift(m.get(o[1], kind), m.get(o[2], "u32"), i.name == "shl"))


def _bfe(i: Instruction) -> Callable[[Machine], None]:
    kind, o = i.parts[-1], i.operands

    def run(m: Machine) -> None:
        value, start, length = m.get(o[1], kind), int(m.get(o[2], "u32")), int(m.get(o[3], "u32"))
        bits = 8 * np.dtype(KINDS[kind]).itemsize
        up = KINDS[kind](max(0, bits - start - length))
        m.put(o[0], (value << up) >> KINDS[kind](bits - length))

    return run


def _prmt(i: Instruction) -> Callable[[Machine], None]:
    o = i.operands

    def run(m: Machine) -> None:
        a, b, chosen = (m.each(x, "u32").astype(np.uint64) for x in o[1:4])
        both = a | b << np.uint64(32)
        made = np.zeros(m.count, np.uint64)
        for byte in range(4):
            pick = chosen >> np.uint64(4 * byte) & np.uint64(15)
            value = both >> (pick & np.uint64(7)) * np.uint64(8) & np.uint64(255)
            sign = np.where(value >> np.uint64(7) != 0, np.uint64(255), np.uint64(0))
            made |= np.where(pick & np.uint64(8) != 0, sign, value) << np.uint64(8 * byte)
        m.put(o[0], made.astype(np.uint32))

    return run


def _setp(i: Instruction) -> Callable[[Machine], None]:
    kind, o, compare = i.parts[-1], i.operands, COMPARE[i.parts[0]]
    if len(i.parts) > 2 and i.parts[1] in ("and", "or"):
        joined = BINARY[i.parts[1]]
        return lambda m: m.put(o[0], joined(compare(m.get(o[1], kind), m.get(o[2], kind)), m.get(o[3], "pred")))
    return lambda m: m.put(o[0], compare(m.get(o[1], kind), m.get(o[2], kind)))


def _selp(i: Instruction) -> Callable[[Machine], None]:
    kind, o = i.parts[-1], i.operands
    return lambda m: m.put(o[0], np.where(m.get(o[3], "pred"), m.get(o[1], kind), m.get(o[2], kind)))


def _mov(i: Instruction) -> Callable[[Machine], None]:
    kind, o = i.parts[-1], i.operands
    if o[0].startswith("{"):  # apart
        names = several(o[0])
        bits = 8 * np.dtype(KINDS[kind]).itemsize // len(names)
        part = UNSIGNED[bits // 8]

        def apart(m: Machine) -> None:
            value = m.get(o[1], kind)
            for index, name in enumerate(names):
                m.put(name, (value >> value.dtype.type(bits * index)).astype(part))

        return apart
    if o[1].startswith("{"):  # together
        names = several(o[1])
        bits = 8 * np.dtype(KINDS[kind]).itemsize // len(names)

        def together(m: Machine) -> None:
            made: Any = KINDS[kind](0)
            for index, name in enumerate(names):
                made = made | m.get(name, f"b{bits}").astype(KINDS[kind]) << KINDS[kind](bits * index)
            m.put(o[0], made)

        return together
    return lambda m: m.put(o[0], m.get(o[1], kind))


def _cvt(i: Instruction) -> Callable[[Machine], None]:
    to, source = i.parts[-2:]
    o = i.operands
    if to in ("bf16x2", "f16x2"):
        brain = to == "bf16x2"

        def pack(m: Machine) -> None:
            high, low = (_to_half(np.asarray(m.get(x, "f32")), brain).astype(np.uint32) for x in o[1:3])
            m.put(o[0], high << np.uint32(16) | low)

        return pack
    if source in ("bf16", "f16") and to == "f32":
        return lambda m: m.put(o[0], halves(m.each(o[1], "b16"), source == "bf16"))
    if to in ("bf16", "f16") and source == "f32":
        return lambda m: m.put(o[0], _to_half(m.each(o[1], "f32"), to == "bf16"))
    if to[0] in "us" and source[0] == "f":
        rounds = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}[i.parts[0]]
        limits = np.iinfo(KINDS[to])

        def whole(m: Machine) -> None:
            value = rounds(np.nan_to_num(m.get(o[1], source).astype(np.float64)))
            m.put(o[0], np.clip(value, limits.min, limits.max).astype(KINDS[to]))

        return whole
    return lambda m: m.put(o[0], m.each(o[1], source).astype(KINDS[to]))


def _ld(i: Instruction) -> Callable[[Machine], None]:
    o, kind = i.operands, i.parts[-1]
    names = several(o[0])
    unit = np.dtype(KINDS[kind]).itemsize
    size = unit * len(names)
    if "param" in i.parts:
        name, _, offset = o[1].strip("[] ").partition("+")

        def parameter(m: Machine) -> None:
            value = m.parameters[name.strip()]
            if isinstance(value, np.ndarray):
                start = int(offset or 0)
                raw = value.view(np.uint8).ravel()[start : start + size].view(KINDS[kind])
                for register, one in zip(names, raw, strict=True):
                    m.put(register, one)
                return
            number = KINDS[kind](int(value) if kind[0] == "s" else int(value) % (1 << 8 * unit))
            # A longer register gets a signed number with its sign.
            m.put(names[0], np.int64(number) if kind[0] == "s" else number)

        return parameter

    def run(m: Machine) -> None:
        act = np.flatnonzero(m.active)
        space = "u32" if "shared" in i.parts[0] else "u64"
        at = m.addresses(o[1], space)[act]
        if space == "u32":
            values = m.load_shared(at, m.program[act], size, unit)
        elif (at >= np.uint64(CONSTANTS)).any():
            values = _constant(m, at, len(names), unit)
        else:
            values = m.memory.load(at, size, unit)
        for index, register in enumerate(names):
            made = np.zeros(m.count, values.dtype)
            made[act] = values[:, index]
            if kind[0] == "s":
                made = made.view(KINDS[kind]).astype(np.int64 if m.width(register) == 8 else KINDS[kind])
            m.put(register, made)

    return run


def _constant(m: Machine, at: Lanes, count: int, unit: int) -> Lanes:
    """From a module's own arrays, which are zeros, and from memory."""
    values = np.zeros((at.size, count), UNSIGNED[unit])
    own = at >= np.uint64(CONSTANTS)
    arrays = list(m.kernel.constants.values())
    offsets = at[own] - np.uint64(CONSTANTS)
    sizes = np.array([a.size for a in arrays])[(offsets >> np.uint64(32)).astype(int)]
    if ((offsets & np.uint64(0xFFFFFFFF)).astype(int) + count * unit > sizes).any():
        raise Fault("a read beyond a module's array")
    values[~own] = m.memory.load(at[~own], count * unit, unit)
    return values


def _st(i: Instruction) -> Callable[[Machine], None]:
    o, kind = i.operands, i.parts[-1]
    names = several(o[1])
    space = "u32" if "shared" in i.parts[0] else "u64"

    def run(m: Machine) -> None:
        act = np.flatnonzero(m.active)
        at = m.addresses(o[0], space)[act]
        unsigned = f"u{8 * np.dtype(KINDS[kind]).itemsize}"
        values = np.stack([m.each(name, unsigned)[act] for name in names], 1)
        if space == "u32":
            m.store_shared(at, m.program[act], values)
        else:
            m.memory.store(at, values)

    return run


def _cvta(i: Instruction) -> Callable[[Machine], None]:
    return lambda m: m.put(i.operands[0], m.get(i.operands[1], "u64"))


_MAKERS: dict[str, Callable[[Instruction], Callable[[Machine], None]]] = {
    "mul": _mul, "mad": _mad, "fma": _multiply_add, "div": _div, "rem": _div, "shl": _shifts, "shr": _shifts,
    "bfe": _bfe, "prmt": _prmt, "setp": _setp, "selp": _selp, "mov": _mov, "cvt": _cvt, "cvta": _cvta, "ld": _ld,
    "st": _st, **matrices.MAKERS,
}  # fmt: skip
