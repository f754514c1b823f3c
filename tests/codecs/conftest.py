from collections.abc import Callable
from pathlib import Path

import pytest
from qp_streams import SVT_QUIET, X265_QUIET, encode, encode_libaom, remux


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache folder of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the stream of a name, made when first asked for."""
    folder = tmp_path_factory.mktemp("streams")
    recipes: dict[str, Callable[[Path], Path]] = {
        "closed.mkv": lambda path: encode(path, "libx265", {"x265-params": f"crf=30:{X265_QUIET}"}),
        "open.mkv": lambda path: encode(
            path, "libx265", {"x265-params": f"crf=30:keyint=10:min-keyint=10:open-gop=1:bframes=4:{X265_QUIET}"}
        ),
        "low.mkv": lambda path: encode(
            path, "libx265", {"x265-params": f"crf=30:keyint=10:min-keyint=10:open-gop=1:bframes=0:{X265_QUIET}"}
        ),
        "fields.mkv": lambda path: encode(path, "libx265", {"x265-params": f"crf=30:interlace=tff:{X265_QUIET}"}),
        "ten.mkv": lambda path: encode(
            path, "libx265", {"x265-params": f"crf=12:{X265_QUIET}"}, pixel_format="yuv420p10le"
        ),
        "svt.mkv": lambda path: encode(
            path, "libsvtav1", {"preset": "9", "crf": "40", "g": "16", "svtav1-params": SVT_QUIET}
        ),
        "aom.mkv": lambda path: encode_libaom(path, "-crf", "40", "-g", "16", "-auto-alt-ref", "1"),
        "x264.mp4": lambda path: encode(
            path, "libx264", {"crf": "28", "x264-params": "keyint=10:open-gop=1:bframes=4:b-pyramid=normal:threads=1"}
        ),
        "vp9.webm": lambda path: encode(path, "libvpx-vp9", {"crf": "40", "b": "0", "cpu-used": "8", "g": "16"}),
        "mpeg2.ts": lambda path: encode(path, "mpeg2video", {"b": "400000", "bf": "2", "g": "12"}),
    }

    def get(name: str) -> Path:
        path = folder / name
        if not path.exists():
            stem, source = path.stem, next((key for key in recipes if Path(key).stem == path.stem), "")
            if name in recipes:
                return recipes[name](path)
            assert source, f"no recipe for {stem}"
            return remux(get(source), path)
        return path

    return get
