"""The methods that ``vsdiqp evaluate`` can compare: each turns a decoded clip into a restored one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vsdiqp import __version__
from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.video import Node, core


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

    @property
    def name(self) -> str:
        """``diqp`` and the model's short name."""
        extra = "".join(f",{k}={v}" for k, v in self.arguments.items())
        return f"diqp:{Path(self.model).stem}{extra}"

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


def parse_method(text: str) -> Method:
    """A method from its text on the command line.

    ``input``; ``diqp:MODEL`` with a shipped name or a path, and further filter arguments after commas
    (``diqp:lite,strength=0.5``, ``diqp:lite,qp=stream``); ``closed-form`` or ``closed-form:FILE``; a classic
    filter's name.
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
        return Diqp(model, chosen)
    if kind == "closed-form":
        from vsdiqp.evaluation.closed_form import ClosedForm

        return ClosedForm.load(rest or None)
    if kind in classics.FILTERS and not rest:
        return classics.tuned(kind)
    known = ["input", "diqp:MODEL", "closed-form", *classics.FILTERS]
    raise DiqpError(f"unknown method {text!r}; known: {', '.join(known)}")


def parse_methods(texts: Sequence[str]) -> list[Method]:
    """Methods in order, the input first and each name once."""
    methods: dict[str, Method] = {"input": Input()}
    for text in texts:
        method = parse_method(text)
        methods[method.name] = method
    return list(methods.values())


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
