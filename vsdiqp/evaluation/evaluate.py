"""Clips x codecs x QPs x methods -> scores: encode, decode, restore, measure, one frame at a time."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsdiqp.codecs.scales import check_qp
from vsdiqp.errors import DiqpError
from vsdiqp.evaluation.metrics import (
    SSIM_WINDOW,
    ClipScores,
    FrameScores,
    frame_scores_from_json,
    psnr,
    ssim,
    summarise,
)
from vsdiqp.evaluation.restorers import Method
from vsdiqp.evaluation.video import (
    Node,
    core,
    keep_frames,
    lockstep,
    open_video,
    plane,
    rgb_picture,
    settle_colour,
    to_rgb,
)
from vsdiqp.evaluation.vmaf import vmaf
from vsdiqp.labels import shown

_SCORES_VERSION = 3  # raise when a metric's meaning changes: kept scores are then measured anew


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and on how much."""

    frames: int | None = 30
    """At most that many frames from a clip's start; None: all."""
    ssim_every: int = 3
    """SSIM on every that-manieth frame (0: never): it costs more than all else."""
    vmaf: bool = False
    bits: int | None = None
    """Methods get the decoded clip with this many bits a sample and answer in as many; None: as decoded."""


@dataclass(frozen=True, slots=True)
class Point:
    """A clip encoded in one way."""

    clip: str
    codec: str
    qp: float


@dataclass(frozen=True, slots=True)
class Result:
    """Scores of one method on one encoded clip."""

    point: Point
    method: str
    kbps: float
    """Bitrate of the encode, at the clip's own frame rate."""
    scores: ClipScores
    frames: tuple[FrameScores, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "clip": self.point.clip,
            "codec": self.point.codec,
            "qp": self.point.qp,
            "method": self.method,
            "kbps": round(self.kbps, 3),
            "scores": self.scores.to_json(),
            "frames": [frame.to_json() for frame in self.frames],
        }


Progress = Callable[[int, int, str], None]
"""Called with (done, total, what comes next)."""


def evaluate(
    clips: Sequence[str | Path],
    qps: Mapping[str, Sequence[float]],
    methods: Sequence[Method],
    out: str | Path,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Measures every method on every clip at every QP of every codec.

    Encodes and scores are kept under `out` and used again as long as clip, settings and method are the same. `qps`
    maps a codec to QPs in its own scale. Raises DiqpError for files that cannot be read and for QPs that cannot be
    encoded.
    """
    check_encodable(qps)
    settings = settings or Settings()
    out = Path(out)
    if shown(str(out)) != str(out):  # filters read each frame's QP from files in there, and are given names as UTF-8
        raise DiqpError(f"the name of {shown(str(out))} is no UTF-8; give another folder for encodes and scores")
    names = [shown(Path(clip).stem) for clip in clips]
    if len(set(names)) != len(names):
        raise DiqpError(f"clips must have different names, got {', '.join(names)}")
    total = len(clips) * sum(len(q) for q in qps.values()) * len(methods)
    done = 0
    results = []
    for clip in clips:
        reference = Reference.open(clip, settings.frames)
        rows, columns = reference.node.height, reference.node.width
        if settings.ssim_every and min(rows, columns) < SSIM_WINDOW:
            raise DiqpError(
                f"{reference.name} is {columns}x{rows}, and SSIM needs {SSIM_WINDOW}x{SSIM_WINDOW} or more; leave it "
                "out with --ssim-every 0"
            )
        for codec, points in qps.items():
            for qp in points:
                encode = reference.encode(codec, qp, out / "encodes")
                for method in methods:
                    if progress:
                        progress(done, total, f"{reference.name} {codec} {qp:g} {method.name}")
                    results.append(_score(reference, encode, Point(reference.name, codec, qp), method, settings, out))
                    done += 1
    if progress:
        progress(done, total, "done")
    return results


def check_encodable(qps: Mapping[str, Sequence[float]]) -> None:
    """Raises DiqpError for QPs out of scale and for those in whose place the encoder takes others.

    Scores are shown and kept by QP, and restorers are told it: it has to be that of the encode.
    """
    from vsdiqp.training.degrade import EncodeSettings

    for codec, values in qps.items():
        for qp in values:
            check_qp(codec, qp)
            encoded = EncodeSettings(codec, qp).qp
            if encoded != qp:
                raise DiqpError(f"SVT-AV1 can't be asked for base_q_idx {qp:g}; give {encoded:g}, which is the nearest")


@dataclass(frozen=True)
class Reference:
    """A pristine clip, made ready for encoding: 4:2:0 of 8 or 10 bits, even size, colour settled."""

    name: str
    key: str
    """Hash of the file's content and of the number of frames taken."""
    node: Node

    @classmethod
    def open(cls, path: str | Path, frames: int | None = None) -> "Reference":
        """The clip's first `frames` frames. Raises DiqpError for files that cannot be read."""
        node = prepare(open_video(path))
        if frames:
            node = node[: min(frames, node.num_frames)]
        digest = hashlib.sha256(f"{node.num_frames} {node.format.name} ".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return cls(shown(Path(path).stem), digest.hexdigest()[:16], node)

    @property
    def seconds(self) -> float:
        """Length at the clip's own frame rate; 24 frames a second where it has none."""
        rate = float(self.node.fps) or 24.0
        return float(self.node.num_frames / rate)

    def encode(self, codec: str, qp: float, folder: Path) -> Path:
        """Path of the clip's encode at constant QP (x265 medium, SVT-AV1 preset 6), made when not there yet.

        Raises DiqpError for QPs and for clips that the encoder doesn't take as they are.
        """
        import av

        from vsdiqp.training import degrade

        check_encodable({codec: [qp]})
        settings = degrade.EncodeSettings(codec, qp)
        mark = hashlib.sha256(repr((self.key, settings.encoder, settings.options())).encode()).hexdigest()[:12]
        path = folder / f"{self.name}-{codec}-{qp:g}-{mark}.mkv"
        if not path.is_file():
            try:
                data = degrade.encode(self._samples(), settings).data
            except av.FFmpegError as error:
                size = f"{self.node.width}x{self.node.height}"
                raise DiqpError(f"{settings.encoder} does not encode {self.name}, {size}: {error.strerror}") from error
            write_whole(path, data)
        return path

    def decode(self, encoded: Path) -> Node:
        """The encode as a clip with this clip's colour and length, and each frame's QP where our plugin is loaded.

        Raises DiqpError where it does not match.
        """
        node = open_video(encoded)
        if (node.width, node.height, node.num_frames) != (self.node.width, self.node.height, self.node.num_frames):
            raise DiqpError(f"{encoded} does not match its source; delete it and run again")
        if hasattr(core(), "diqp"):
            node = core().diqp.ReadQP(node, str(encoded))
        return settle_colour(node, like=self.node)

    def _samples(self) -> Any:
        from vsdiqp.training.degrade import Clip

        luma, chroma = [], []
        for (frame,) in lockstep(self.node):
            luma.append(np.asarray(frame[0]).copy())
            chroma.append(np.stack([np.asarray(frame[1]), np.asarray(frame[2])]))
        return Clip(np.stack(luma), np.stack(chroma, 1), self.node.format.bits_per_sample)


def prepare(clip: Node) -> Node:
    """A pristine clip as 4:2:0 of 8 or 10 bits and even size with settled colour: what the encoders take as it is."""
    import vapoursynth

    clip = core().std.Crop(clip, right=clip.width % 2, bottom=clip.height % 2)
    deep = clip.format.bits_per_sample > 8
    target = vapoursynth.YUV420P10 if deep else vapoursynth.YUV420P8
    clip = settle_colour(clip)
    if clip.format.id == target:
        return clip
    arguments: dict[str, int] = {"format": target}
    if clip.format.color_family != vapoursynth.YUV:
        arguments["matrix"] = 1
    return settle_colour(core().resize.Bicubic(clip, **arguments))


def with_bits(clip: Node, bits: int) -> Node:
    """The same picture with `bits` bits a sample; with fewer than before, rounded."""
    return core().resize.Point(clip, format=clip.format.replace(bits_per_sample=bits).id)


def measure(source: Node, decoded: Node, restored: Node, settings: Settings) -> Iterator[FrameScores]:
    """Scores of every frame of `restored`, streaming: no more than a few frames are held."""
    previous = None
    for clip in (source, decoded, restored):
        keep_frames(clip)
    clips = (source, decoded, restored, to_rgb(source), to_rgb(restored))
    for n, (clean, damaged, frame, clean_rgb, frame_rgb) in enumerate(lockstep(*clips)):
        luma, clean_luma = plane(frame, 0), plane(clean, 0)
        rgb, clean_colours = rgb_picture(frame_rgb), rgb_picture(clean_rgb)
        with_ssim = settings.ssim_every > 0 and n % settings.ssim_every == 0
        residual = luma - plane(damaged, 0)
        change = None if previous is None else float(np.mean(np.abs(residual - previous))) * 255
        previous = residual
        yield FrameScores(
            y_psnr=psnr(luma, clean_luma),
            c_psnr=float(np.mean([psnr(plane(frame, i), plane(clean, i)) for i in (1, 2)])),
            rgb_psnr=float(np.mean([psnr(a, b) for a, b in zip(rgb, clean_colours, strict=True)])),
            y_ssim=ssim(luma, clean_luma) if with_ssim else None,
            rgb_ssim=float(np.mean([ssim(a, b) for a, b in zip(rgb, clean_colours, strict=True)]))
            if with_ssim
            else None,
            change=change,
        )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def _score(reference: Reference, encode: Path, point: Point, method: Method, settings: Settings, out: Path) -> Result:
    mark = repr((_SCORES_VERSION, reference.key, encode.name, method.key, settings))
    kept = out / "scores" / f"{hashlib.sha256(mark.encode()).hexdigest()[:24]}.json"
    kbps = encode.stat().st_size * 8 / 1000 / reference.seconds
    if kept.is_file():
        data = json.loads(kept.read_text())
        frames = tuple(frame_scores_from_json(f) for f in data["frames"])
        return Result(point, method.name, kbps, summarise(frames, data["vmaf"]), frames)
    decoded = reference.decode(encode)
    if settings.bits:
        if settings.bits < decoded.format.bits_per_sample:
            raise DiqpError(
                f"{reference.name} has {decoded.format.bits_per_sample} bits a sample; measure it with as many or more"
            )
        decoded = with_bits(decoded, settings.bits)
    restored = method.restore(decoded, point.codec, point.qp)
    if (restored.format.id, restored.num_frames) != (decoded.format.id, decoded.num_frames):
        raise DiqpError(f"{method.name} changes the clip's format or length; it cannot be measured")
    frames = tuple(measure(reference.node, decoded, restored, settings))
    grade = None
    if settings.vmaf:
        # libvmaf compares clips of one depth, and knows 8 and 10 bits.
        ten = settings.bits is not None
        pair = [with_bits(c, 10) if ten else c for c in (restored, reference.node)]
        grade = vmaf((r, s) for r, s in lockstep(*pair))
    write_whole(kept, json.dumps({"vmaf": grade, "frames": [f.to_json() for f in frames]}).encode())
    return Result(point, method.name, kbps, summarise(frames, grade), frames)
