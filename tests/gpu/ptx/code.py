"""PTX as text -> instructions."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Fault(Exception):
    """What a GPU would stop at, or what the machine does not know."""


@dataclass(slots=True)
class Instruction:
    """One instruction, with its operands as text."""

    name: str
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str
    negated: bool
    text: str
    run: Callable[[Any], None] | None = None


@dataclass(slots=True)
class Kernel:
    """A kernel's code."""

    name: str
    parameters: list[str]
    registers: dict[str, str]
    """Kinds by name; numbered registers by their prefix."""
    code: list[Instruction]
    labels: dict[str, int]
    constants: dict[str, NDArray[np.uint8]]
    """Arrays of the module, by name."""
    meetings: dict[int, int] = field(default_factory=dict)

    def meeting(self, branch: int) -> int:
        """The first instruction that every way from a branch comes to: its immediate post-dominator."""
        if not self.meetings:
            self.meetings = _meetings(self)
        return self.meetings[branch]


def _meetings(kernel: Kernel) -> dict[int, int]:
    """By branch."""
    code, end = kernel.code, len(kernel.code)
    leaving = [index for index, i in enumerate(code) if i.name in ("bra", "ret", "exit")]
    starts = sorted({0, end, *kernel.labels.values(), *(index + 1 for index in leaving)})
    after: dict[int, list[int]] = {end: []}
    last: dict[int, int] = {}
    for start, following in pairwise(starts):
        ending = code[following - 1]
        last[start] = following - 1
        goes_on = not (ending.name in ("bra", "ret", "exit") and not ending.predicate)
        after[start] = [following] if goes_on else []
        if ending.name == "bra":
            after[start].append(kernel.labels[ending.operands[-1]])
        elif ending.name in ("ret", "exit"):
            after[start].append(end)
    behind = {start: set(starts) for start in starts} | {end: {end}}
    changed = True
    while changed:
        changed = False
        for start in reversed(starts[:-1]):
            ways = [behind[one] for one in after[start]]
            found = {start} | (set.intersection(*ways) if ways else set())
            if found != behind[start]:
                behind[start], changed = found, True
    nearest = {s: max(behind[s] - {s}, key=lambda b: len(behind[b]), default=end) for s in last}
    return {last[start]: nearest[start] for start in last if code[last[start]].name == "bra"}


_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr[^,)]*?\s)?(\w+)(?:\[(\d+)\])?\s*(?=[,)\n])")


def parse(text: str) -> Kernel:
    """A module's first kernel."""
    text = re.sub(r"//[^\n]*", "", text)
    entry = re.search(r"\.visible\s+\.entry\s+(\w+)\s*\((.*?)\).*?\n\{", text, re.S)
    if entry is None:
        raise Fault("no kernel in this module")
    parameters = [found[2] for found in _PARAMETER.finditer(entry[2] + "\n")]
    body = text[entry.end() :]
    depth, end = 1, 0
    for end, letter in enumerate(body):  # noqa: B007
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if not depth:
            break
    constants = {
        found[1]: np.zeros(int(found[2]), np.uint8)
        for found in re.finditer(
            r"\.(?:global|const)\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]\s*;", text[: entry.start()]
        )
    }
    kernel = Kernel(entry[1], parameters, {}, [], {}, constants)
    _read(body[:end], kernel)
    return kernel


_UNREAD = re.compile(
    r"^(?:\.loc\s+\d+\s+\d+\s+\d+(?:\s*,\s*function_name\s+\S+,\s*inlined_at\s+\d+\s+\d+\s+\d+)?\s*"
    r"|\.pragma\s+\"[^\"]*\"\s*)+"
)
"""Of code: where it comes from, and hints."""


def _read(body: str, kernel: Kernel) -> None:
    """Instructions, labels and registers; what a scope in braces names is its own."""
    scopes: list[dict[str, str]] = [{}]
    fresh = count()
    for statement in body.split(";"):
        rest = " ".join(statement.split())
        while True:
            rest = _UNREAD.sub("", rest)
            if rest[:1] in ("{", "}"):  # of a scope; others are parts of operands
                if rest[0] == "{":
                    scopes.append({})
                else:
                    scopes.pop()
                rest = rest[1:].lstrip()
                continue
            label = re.match(r"([$\w]+):\s*", rest)
            if label is None:
                break
            name = label[1]
            if len(scopes) > 1:
                name = scopes[-1].setdefault(label[1], f"{label[1]}@{next(fresh)}")
            kernel.labels[name] = len(kernel.code)
            rest = rest[label.end() :]
        if not rest:
            continue
        if rest.startswith(".reg"):
            _, kind, names = rest.split(None, 2)
            for one in names.split(","):
                numbered = re.match(r"\s*(%?\w+)<\d+>", one)
                register = numbered[1] if numbered else one.strip()
                if len(scopes) > 1:
                    scopes[-1][register] = register = f"{register}@{next(fresh)}"
                kernel.registers[register] = kind[1:]
            continue
        guard = re.match(r"@(!?)([%\w]+)\s+", rest)
        if guard:
            rest = rest[guard.end() :]
        word, _, operands = rest.partition(" ")
        known = {a: b for scope in scopes for a, b in scope.items()}

        def renamed(operand: str, known: dict[str, str] = known) -> str:
            return re.sub(r"[$%\w]+", lambda m: known.get(m[0], m[0]), operand)

        found = tuple(renamed(o) for o in _split(operands))
        name, *parts = word.split(".")
        kernel.code.append(
            Instruction(name, tuple(parts), found, renamed(guard[2]) if guard else "", bool(guard and guard[1]), rest)
        )


def _split(operands: str) -> list[str]:
    """Operands, of which those in braces and brackets are one."""
    found, depth, start = [], 0, 0
    for index, letter in enumerate(operands):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(letter, 0)
        if letter == "," and not depth:
            found.append(operands[start:index].strip())
            start = index + 1
    return [*found, operands[start:].strip()] if operands.strip() else []


def several(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip().strip("{}").split(",")]
