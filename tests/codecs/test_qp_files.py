"""Files that are damaged, foreign, absent, known already, or changing."""

import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import av.logging
import pytest

from vsdiqp.codecs import Scan, probe, read_qps, reading
from vsdiqp.errors import DiqpError

Streams = Callable[[str], Path]


@pytest.mark.parametrize("name", ["closed.mp4", "open.hevc", "svt.obu", "svt.ivf", "x264.ts", "vp9.webm", "mpeg2.ts"])
def test_damage_gives_qps_or_a_clear_error(streams: Streams, tmp_path: Path, name: str) -> None:
    data = streams(name).read_bytes()
    rng = random.Random(11)
    path = tmp_path / name
    for _ in range(8):
        damaged = bytearray(data)
        for _ in range(rng.choice((3, 30, 300))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        for order in ("headers", "decoder"):
            try:
                scan = probe(path, order=order, use_cache=False)
            except DiqpError as error:
                assert str(path) in str(error)
            else:
                assert len(scan.qps) == len(scan.frames) > 0
                assert all(0 <= qp <= (255 if scan.codec == "av1" else 51) for qp in scan.qps)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.hevc", "clip.obu", "clip.mp4", "clip"])
@pytest.mark.parametrize("content", [b"", b"not a video\n" * 100, random.Random(3).randbytes(20_000)])
def test_garbage_is_an_error_that_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DiqpError, match=name):
        read_qps(path)


def test_absent_files_and_folders_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.mkv", tmp_path, Path("a\0b"), Path("~/absent.mkv")):
        with pytest.raises(DiqpError, match=r"cannot read .*give the file that the clip was read from") as error:
            read_qps(path)
        assert "~" not in str(error.value)


def test_no_home_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qp_streams import encode

    def homeless() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert read_qps(encode(tmp_path / "clip.mkv", "libx265", {"qp": "30"}))


def test_a_codec_without_qp_is_refused_with_the_ones_that_have(tmp_path: Path) -> None:
    from qp_streams import encode

    path = encode(tmp_path / "clip.mkv", "ffv1", {})
    with pytest.raises(DiqpError, match=r"ffv1.*hevc, av1, h264, vp9"):
        read_qps(path)


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    scanned: list[Path] = []

    def counted(path: Path, *args: object) -> Scan:
        scanned.append(path)
        return original(path, *args)

    original = reading.scan_file
    monkeypatch.setattr(reading, "scan_file", counted)
    return scanned


def test_a_file_is_scanned_once(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = count_scans(monkeypatch)
    first, second = probe(streams("closed.mkv")), probe(streams("closed.mkv"))
    assert first == second
    assert len(scanned) == 1


def test_a_changed_file_is_scanned_again(streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = count_scans(monkeypatch)
    path = tmp_path / "clip.mkv"
    shutil.copy(streams("closed.mkv"), path)
    before = read_qps(path)
    shutil.copy(streams("ten.mkv"), path)
    assert read_qps(path) == read_qps(streams("ten.mkv")) != before
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    read_qps(path)
    assert scanned.count(path) == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2]", b'{"key": 1}', b"\xff\xfe"])
def test_a_damaged_cache_entry_is_made_anew(
    streams: Streams, own_cache: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    scanned = count_scans(monkeypatch)
    first = probe(streams("closed.mkv"))
    (entry,) = (path for path in own_cache.rglob("*") if path.is_file())
    entry.write_bytes(damage)
    assert probe(streams("closed.mkv")) == first == probe(streams("closed.mkv"))
    assert len(scanned) == 2


def test_a_cache_folder_that_cannot_be_made_is_no_error(streams: Streams, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    assert read_qps(streams("closed.mkv")) == read_qps(streams("closed.mkv"))


def test_a_file_that_changes_while_it_is_read_is_an_error_and_not_kept(
    streams: Streams, tmp_path: Path, own_cache: Path
) -> None:
    path = tmp_path / "clip.hevc"
    shutil.copy(streams("open.hevc"), path)

    size = path.stat().st_size

    def grow(share: float) -> None:
        assert 0 <= share <= 1
        if path.stat().st_size == size:
            with path.open("ab") as file:
                file.write(b"\0")

    with pytest.raises(DiqpError, match="changed while"):
        probe(path, progress=grow)
    assert not [entry for entry in own_cache.rglob("*") if entry.is_file()]


def test_scans_in_threads_agree_and_leave_the_log_as_it_was(streams: Streams) -> None:
    names = ("closed.mkv", "open.mkv", "svt.mkv", "ten.mkv")
    expected = {name: read_qps(streams(name), use_cache=False) for name in names}
    before = (av.logging.get_level(), av.logging.get_skip_repeated())
    found: dict[str, list[list[int]]] = {name: [] for name in names}

    def work(name: str) -> None:
        for _ in range(5):
            found[name].append(read_qps(streams(name), use_cache=False))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [expected[name]] * 5 for name in names}
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before


def test_a_failed_scan_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    before = (av.logging.get_level(), av.logging.get_skip_repeated())
    path = tmp_path / "clip.hevc"
    path.write_bytes(b"\0\0\1\x40" * 500)
    with pytest.raises(DiqpError):
        read_qps(path)
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before


@pytest.mark.parametrize("name", ["open.hevc", "svt.mkv", "x264.mp4"])
def test_a_long_scan_shows_progress_on_stderr_alone(
    streams: Streams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for quiet, patience in ((True, 60.0), (False, 0.0)):
        monkeypatch.setattr(reading, "_PATIENCE", patience)
        read_qps(streams(name), use_cache=False)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert (captured.err == "") == quiet
        assert quiet or name in captured.err
