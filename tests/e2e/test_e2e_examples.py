"""The examples as they are, through vspipe, into the real encoders."""

import io
from pathlib import Path

import av
import pytest

ROOT = Path(__file__).parents[2]
X265 = ["x265", "--log-level", "error", "--y4m", "-", "--crf", "18", "-o"]
SVT_AV1 = ["SvtAv1EncApp", "-i", "-", "--preset", "12", "--crf", "24", "-b"]


def decoded(file: Path | io.BytesIO) -> list[tuple[int, int]]:
    """Width and height of every frame that a decoder gets out of a file."""
    with av.open(file if isinstance(file, io.BytesIO) else str(file)) as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("example", "encoder", "size", "frames"),
    [
        pytest.param("x265.vpy", X265, (128, 96), 11, id="x265"),
        pytest.param("svt-av1.vpy", SVT_AV1, (128, 96), 11, id="svt-av1"),
        pytest.param("readqp.vpy", X265, (128, 96), 9, id="readqp"),
        pytest.param("chain.vpy", X265, (96, 72), 11, id="chain"),
    ],
)
def test_an_example_fills_a_decodable_file(example, encoder, size, frames, vspipe, encode, clip, tmp_path):
    y4m = vspipe("-c", "y4m", "-a", f"source={clip}", ROOT / "examples" / example, "-")
    target = tmp_path / ("out.ivf" if encoder is SVT_AV1 else "out.hevc")
    encode([*encoder, str(target)], y4m)
    assert decoded(target) == [size] * frames


def test_every_example_is_tried():
    tried = {"x265.vpy", "svt-av1.vpy", "readqp.vpy", "chain.vpy"}
    assert {path.name for path in (ROOT / "examples").glob("*.vpy")} == tried
