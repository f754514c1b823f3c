"""The methods that ``vsdiqp evaluate`` can compare: each turns a decoded clip into a restored one."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from vsdiqp import __version__
from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.video import Node, core
from vsdiqp.labels import shown


class Method(Protocol):
    """A restorer under evaluation."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def key(self) -> str:
        """Changes whenever the method's results may change; scores are kept under it."""
        ...

    def restore(self, clip: Node, codec: str, qp: float) -> Node:
        """A clip of the same format and length. `qp` in the codec's own scale."""
        ...


@dataclass(frozen=True)
class Input:
    """Does nothing: the decoded clip itself. Every delta is against it."""

    name: str = "input"
    key: str = "input"

    def restore(self, clip: Node, codec: str, qp: float) -> Node:
        """The clip itself."""
        return clip


@dataclass(frozen=True)
class Diqp:
    """``core.diqp.Restore`` with a shipped model's name or a checkpoint's path, and further arguments.

    The argument ``qp`` is not a number here: ``"asked"`` (default) tells the filter the QP that was asked of the
    encoder, ``"stream"`` lets it take each frame's own, which ``core.diqp.ReadQP`` has put on the clip.
    """

    model: str
    arguments: dict[str, int | float | str] = field(default_factory=dict)
    label: str = field(default="", compare=False)
    """What to call the model; its file's name without suffix where empty."""

    @property
    def name(self) -> str:
        """``diqp``, the model's short name, and the arguments."""
        extra = "".join(f",{k}={v}" for k, v in self.arguments.items())
        return f"diqp:{shown((self.label or Path(self.model).stem) + extra)}"

    @property
    def key(self) -> str:
        """Version, arguments, and the checkpoint's content. Raises DiqpError where there is no such checkpoint."""
        from vsdiqp.network import model_hash

        return f"diqp {__version__} {model_hash(self.model)} {sorted(self.arguments.items())}"

    def restore(self, clip: Node, codec: str, qp: float) -> Node:
        """Raises DiqpError where the plugin is not loaded or refuses the clip."""
        import vapoursynth

        if not hasattr(core(), "diqp"):
            raise DiqpError("the VapourSynth plugin diqp is not loaded; install vsdiqp: pip install . in its clone")
        arguments = dict(self.arguments)
        if arguments.pop("qp", "asked") == "asked":
            arguments.update(qp=qp, codec=codec)
        try:
            return core().diqp.Restore(clip, model=self.model, **arguments)
        except vapoursynth.Error as error:
            raise DiqpError(str(error)) from error


def parse_method(text: str, label: str = "") -> Method:
    """A method from its text on the command line.

    ``input``; ``diqp:MODEL`` with a shipped name or a path, and further filter arguments after commas
    (``diqp:lite,strength=0.5``, ``diqp:lite,qp=stream``); ``closed-form`` or ``closed-form:FILE``; a classic
    filter's name. ``label``: what its name calls the file, if not by the file's own name without suffix.
    """
    from vsdiqp.evaluation import classics

    kind, _, rest = text.partition(":")
    if kind == "input" and not rest:
        return Input()
    if kind == "diqp":
        model, *arguments = rest.split(",") if rest else ["lite"]
        chosen = dict(parse_argument(a) for a in arguments)
        if chosen.get("qp", "asked") not in ("asked", "stream"):
            raise DiqpError(f"{text!r}: qp is asked or stream here; the QPs themselves come from --qps")
        return Diqp(model, chosen, label)
    if kind == "closed-form":
        from vsdiqp.evaluation.closed_form import ClosedForm

        fitted = ClosedForm.load(rest or None)
        return replace(fitted, name=f"closed-form:{shown(label or Path(rest).stem)}") if rest else fitted
    if kind in classics.FILTERS and not rest:
        return classics.tuned(kind)
    known = ["input", "diqp:MODEL", "closed-form", *classics.FILTERS]
    raise DiqpError(f"unknown method {text!r}; known: {', '.join(known)}")


def parse_methods(texts: Sequence[str]) -> list[Method]:
    """Methods in order, the input first and each method once.

    Different files of one name are told apart by the folders they lie in: everything measured is kept by a method's
    name.
    """
    labels = _labels(_file(text) for text in texts)
    methods: dict[str, Method] = {"input": Input()}
    for text in texts:
        method = parse_method(text, labels.get(_file(text), ""))
        methods[method.name] = method
    return list(methods.values())


def _file(text: str) -> str:
    """The file or shipped name in a method's text; empty where it names none."""
    return text.partition(":")[2].partition(",")[0]


def _labels(models: Iterable[str]) -> dict[str, str]:
    """Labels of the models whose names others have as well: the ends of their paths that are all different."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for model in dict.fromkeys(models):
        by_stem[Path(model).stem].append(model)
    labels: dict[str, str] = {}
    for same in by_stem.values():
        if len(same) > 1:
            files = {model: _place(model) for model in same}
            ends = _ends(list(dict.fromkeys(files.values())))
            labels |= {model: ends[file] for model, file in files.items()}
    return labels


def _place(model: str) -> Path:
    """The absolute path of a model's file; a shipped name as it is."""
    from vsdiqp.network import shipped

    return Path(model) if model in shipped() else Path(os.path.abspath(Path(model).expanduser()))


def _ends(files: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of different paths that are all different, without suffixes where these aren't needed."""
    for whole in ([file.with_suffix("") for file in files], files):
        for length in range(1, max(len(file.parts) for file in files) + 1):
            ends = ["/".join(file.parts[-length:]) for file in whole]
            if len(set(ends)) == len(ends):
                return dict(zip(files, ends, strict=True))
    raise AssertionError("paths that are different end differently")


def parse_argument(text: str) -> tuple[str, int | float | str]:
    """A filter argument from ``name=value``, numbers as numbers. Raises DiqpError where it is not of that form."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise DiqpError(f"expected a filter argument as NAME=VALUE, got {text!r}")
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value
