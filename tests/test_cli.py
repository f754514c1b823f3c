"""The command line: help without heavy imports, errors as one line, exit statuses."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from vsdiqp import __version__
from vsdiqp.cli import COMMANDS, main
from vsdiqp.cli.bench import noise, parse_settings, parse_size, said
from vsdiqp.cli.evaluate import find_clips, parse_qps
from vsdiqp.cli.outputs import check_file
from vsdiqp.errors import DiqpError


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vsdiqp {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["bench", "--no-such-option"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: vsdiqp" in captured.err


@pytest.mark.parametrize(
    "line",
    [
        "train lite --batch 0", "train lite --steps -1", "train lite --threads x", "pool a b --items -2",
        "pool a b --crops 0", "study trust lite out --validation v --threads -1", "evaluate a --frames -3",
    ],
)  # fmt: skip
def test_numbers_that_are_too_small_are_wrong_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert "is no whole number from" in capsys.readouterr().err


def test_names_that_are_no_text_are_shown_somehow(tmp_path: Path) -> None:
    """As argv and the file system have them: bytes that are no UTF-8."""
    command = [sys.executable, "-m", "vsdiqp", "probe", "--help"]
    code = "import sys, vsdiqp.cli as c; c.main(['--version']); print('\\udcff')"
    for arguments in (command, [sys.executable, "-c", code]):
        run = subprocess.run(arguments, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
        assert run.returncode == 0, run.stderr


def test_convert_leaves_the_codecs_to_files_that_say_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.safetensors"
    assert main(["convert", "lite", str(target), "--codec", "av1"]) == 1
    assert "leave --codec out" in capsys.readouterr().err and not target.exists()


def test_what_the_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "lite", str(tmp_path / "nowhere" / "a.safetensors")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("vsdiqp: ") and "nowhere" in error and error.count("\n") == 1


def test_what_libraries_refuse_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import av
    import vapoursynth

    for refusal in (vapoursynth.Error("Crop: no\n  good"), av.error.ArgumentError(22, "no good", "x265")):
        monkeypatch.setattr("vsdiqp.cli.info.run", Mock(side_effect=refusal))
        assert main(["info"]) == 1
        text = capsys.readouterr().err
        assert text.startswith("vsdiqp: ") and "no good" in text and text.count("\n") == 1


@pytest.mark.parametrize("setting", ["qp=30", "model=lite,codec=av1"])
def test_bench_takes_qp_and_codec_for_all_settings_alone(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", setting]) == 1
    assert "give --" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_exists_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.util.find_spec(f"vsdiqp.cli.{name}") is not None
    assert main([name, "--help"]) == 0
    assert f"usage: vsdiqp {name}" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = """if True:
        import sys
        from vsdiqp.cli import main
        main(["--help"])
        print(sorted({"torch", "av", "vapoursynth", "numpy"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "vsdiqp", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"vsdiqp {__version__}\n")


def test_errors_are_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "none.mkv"), "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"vsdiqp: no such clip or folder: {tmp_path / 'none.mkv'}\n"


def test_a_missing_package_names_its_pip_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setattr("vsdiqp.cli.compare.run", lambda args: __import__("skimage"))
    assert main(["compare", "a", "b", "--out", "c"]) == 1
    assert "pip install scikit-image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "evaluate {clip} --out {file}/out", "evaluate {clip} --out {file}", "evaluate {clip} --tune-classics {folder}",
        "evaluate --fit-closed-form {clip} {folder}", "compare {clip} {clip} --out {folder}",
        "study look-ahead {clip} --out {file}/out", "study mirrored lite --validation {clip} --out {file}",
        "study trust lite {file}/a.safetensors --validation {clip}", "study mix lite lite {file}/a.safetensors",
    ],
)  # fmt: skip
def test_places_that_cannot_be_written_are_refused_before_the_work(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: tmp_path / name for name in ("clip", "file", "folder")}
    places["clip"].write_text("no video, which would be said if it was read")
    places["file"].touch()
    places["folder"].mkdir()
    assert main([word.format(**places) for word in line.split()]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("/file" in error or "/folder is a folder" in error) and "clip" not in error


def test_folders_of_results_are_made(tmp_path: Path) -> None:
    check_file(tmp_path / "a" / "b" / "c.png")
    assert (tmp_path / "a" / "b").is_dir()


def test_convert_never_overwrites_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    assert main(["convert", str(tmp_path / "in.pt"), str(target)]) == 1
    assert "--force" in capsys.readouterr().err
    assert target.read_bytes() == b"precious"
    assert main(["convert", str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]) == 1
    assert ".safetensors" in capsys.readouterr().err


def test_qps_belong_to_codecs() -> None:
    assert parse_qps("hevc", ["22,37"]) == {"hevc": [22.0, 37.0]}
    assert parse_qps("hevc,av1", ["hevc=30", "av1=100,200"]) == {"hevc": [30.0], "av1": [100.0, 200.0]}
    assert set(parse_qps("av1", [])) == {"av1"}


@pytest.mark.parametrize(
    ("codecs", "texts", "message"),
    [
        ("vp9", [], "unknown codec 'vp9'; known: "),
        ("hevc,av1", ["22,37"], "which codec"),
        ("hevc", ["av1=100"], "which codec"),
        ("hevc", ["52"], "52"),
        ("hevc", ["high"], "expected numbers"),
    ],
)
def test_wrong_qps_are_errors(codecs: str, texts: list[str], message: str) -> None:
    with pytest.raises(DiqpError, match=message):
        parse_qps(codecs, texts)


def test_folders_stand_for_their_videos(tmp_path: Path) -> None:
    for name in ("b.mkv", "a.MP4", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_clips([str(tmp_path)])] == ["a.MP4", "b.mkv"]
    with pytest.raises(DiqpError, match="no clips"):
        find_clips([])


def test_bench_arguments() -> None:
    assert parse_size("1080p") == (1920, 1080)
    assert parse_size("640x360") == (640, 360)
    for text in ("1080", "x", "0x4", "-4x8", "4x"):
        with pytest.raises(DiqpError, match="WIDTHxHEIGHT"):
            parse_size(text)
    assert parse_settings("model=lite,tile=256") == {"model": "lite", "tile": 256}


def test_bench_hears_what_the_filter_says_of_itself() -> None:
    logger = logging.getLogger("vsdiqp")
    before = logger.level
    with said() as lines:
        logger.info("lite on %s", "cpu")
    logger.info("later")
    assert lines == ["lite on cpu"] and logger.level == before


def test_bench_clip_moves() -> None:
    clip = noise(48, 32, 10, 4)
    frames = [bytes(clip.get_frame(n)[0]) for n in range(4)]
    assert len(set(frames)) == 4
    assert (clip.width, clip.height, clip.format.bits_per_sample) == (48, 32, 10)
