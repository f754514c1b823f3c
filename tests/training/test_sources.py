"""Folders as people have them: what can't be read is told of and passed over, and samples are what the files hold."""

import logging
from pathlib import Path

import av
import numpy as np
import pytest
from material import moving_clip, numbered, picture, write_video
from PIL import Image

from vsdiqp.errors import DiqpError
from vsdiqp.training import camera, sources
from vsdiqp.training.degrade import encode_lossless
from vsdiqp.training.sources import Library, Source, UnreadableError, find_sources


def number(frame: np.ndarray) -> int:
    return (int(frame[0, 0]) - 20) * 2


def fill_with_trouble(folder: Path) -> None:
    """One still that is good, and what people's folders hold beside."""
    folder.mkdir()
    Image.fromarray(picture(96, 96)).save(folder / "good.png")
    (folder / "dir.mp4").mkdir()
    (folder / "._good.png").write_bytes(b"of macOS")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes(b"nothing")
    (folder / "module.ts").write_text("export const answer: number = 42;\n" * 40)
    with av.open(str(folder / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        output.mux([*stream.encode(frame), *stream.encode(None)])


def test_what_can_not_be_read_is_told_of_once_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill_with_trouble(tmp_path / "all")
    (tmp_path / "all" / "torn.mkv").write_bytes(encode_lossless(moving_clip(3))[:300])
    with caplog.at_level(logging.WARNING):
        assert [source.name for source in find_sources(tmp_path / "all")] == ["good.png"]
    told = [record.getMessage() for record in caplog.records]
    assert [Path(text.split(" ")[0]).name for text in told] == ["module.ts", "sound.mp4", "torn.mkv"]
    assert "it has no video" in told[1]


def test_stills_of_too_many_pixels_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, side in (("large", 96), ("small", 32)):
        Image.fromarray(picture(side, side)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert [source.name for source in find_sources(tmp_path)] == ["small.png"]


def test_a_folder_of_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(b"nothing")
    with pytest.raises(DiqpError, match=r"none of the 1 stills and videos.*a\.mkv"):
        find_sources(tmp_path)


def test_folders_of_damaged_pictures_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("07/Raw", "07/Encoded/QP-37", "07/Encoded/qp-51"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(picture(64, 64)).save(tmp_path / folder / "000.png")
    assert [source.name for source in find_sources(tmp_path)] == ["07/Raw/000.png"]
    assert "2 folders named QP-x" in caplog.text


def test_interlaced_videos_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"qp": "0", "preset": "ultrafast", "x264-params": "interlaced=1"}
    write_video(tmp_path / "fields.mkv", moving_clip(5), options=options)
    write_video(tmp_path / "frames.mkv", moving_clip(5))
    assert len(find_sources(tmp_path)) == 2
    assert "fields.mkv is interlaced" in caplog.text and "frames.mkv" not in caplog.text


@pytest.mark.parametrize("end", ["mkv", "mp4"])
def test_frames_before_the_damage_are_used(tmp_path: Path, end: str) -> None:
    clip = moving_clip(12, seed=1)
    path = tmp_path / f"a.{end}"
    write_video(path, clip)
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 2, len(data) // 2 + 3000):
        data[place] ^= 0x5A
    path.write_bytes(data)
    (source,) = find_sources(tmp_path)
    planes, rgb = Library().planes(source), Library().rgb(source)
    assert planes.frames == len(rgb) and 3 <= len(rgb) < 12
    assert np.array_equal(planes.y, clip.y[: planes.frames])


def test_damage_that_decoders_paint_over_ends_a_video(tmp_path: Path) -> None:
    """H.264's frames refer to those before them: all behind the damage would look wrong."""
    path = tmp_path / "a.mp4"
    write_video(path, moving_clip(60, 128), options={"crf": "10", "preset": "fast"})
    whole = Library().planes(find_sources(tmp_path)[0])
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 2, len(data) // 2 + 3):
        data[place] ^= 0x5A
    path.write_bytes(data)
    planes = Library().planes(find_sources(tmp_path)[0])
    assert 3 <= planes.frames < 60
    assert np.array_equal(planes.y, whole.y[: planes.frames])


def test_recordings_may_begin_anywhere(tmp_path: Path) -> None:
    """Of a stream whose beginning is lost, what follows the next keyframe is read."""
    write_video(tmp_path / "a.ts", moving_clip(40, 96), options={"crf": "10", "g": "10"})
    data = (tmp_path / "a.ts").read_bytes()
    packets = len(data) // 188
    # The tables that say what is in it, and all from a little behind the first keyframe on.
    (tmp_path / "a.ts").write_bytes(data[: 3 * 188] + data[packets // 8 * 188 :])
    planes = Library().planes(find_sources(tmp_path)[0])
    assert planes.frames >= 25
    assert np.abs(planes.y - moving_clip(40, 96).y[-planes.frames :].astype(int)).mean() < 2


def test_frames_before_a_change_of_size_are_used(tmp_path: Path) -> None:
    small, large = (tmp_path / f"{side}.ts" for side in (64, 128))
    write_video(small, moving_clip(5, 64))
    write_video(large, moving_clip(5, 128))
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.ts").write_bytes(small.read_bytes() + large.read_bytes())
    (source,) = find_sources(tmp_path / "both")
    assert Library().planes(source).y.shape == (5, 64, 64)
    assert Library().rgb(source).shape == (5, 64, 64, 3)


def test_another_source_is_taken_where_one_fails_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(picture(96, 96)).save(tmp_path / "good.png")
    torn = tmp_path / "torn.png"
    Image.fromarray(picture(96, 96, 1)).save(torn)
    torn.write_bytes(torn.read_bytes()[:5000])
    found = find_sources(tmp_path)
    assert len(found) == 2
    with pytest.raises(UnreadableError, match=r"torn\.png"):
        Library().rgb(found[1])
    shots = [camera.render(found, Library(), (64, 64), 5, np.random.default_rng(seed)) for seed in range(6)]
    assert {name for shot in shots for name in shot.sources} == {"good.png"}
    assert caplog.text.count("torn.png") == 1
    with pytest.raises(UnreadableError, match=r"torn\.png"):
        camera.render(found[1:], Library(), (64, 64), 5, np.random.default_rng(0))


def test_a_file_that_has_gone_is_an_error_that_stays(tmp_path: Path) -> None:
    """A drive may have been unplugged: a pool of what is left would be another one."""
    for name in ("a", "b"):
        Image.fromarray(picture(96, 96)).save(tmp_path / f"{name}.png")
    found = find_sources(tmp_path)
    (tmp_path / "b.png").unlink()
    with pytest.raises(DiqpError, match=r"b\.png can't be opened"):
        for seed in range(20):
            camera.render(found, Library(), (64, 64), 5, np.random.default_rng(seed))


@pytest.mark.parametrize(("end", "container"), [("mkv", {}), ("mp4", {}), ("ts", {"output_ts_offset": "3600"})])
def test_long_videos_are_read_from_where_it_is_said(tmp_path: Path, end: str, container: dict[str, str]) -> None:
    """Also where their time does not begin at 0."""
    write_video(tmp_path / f"a.{end}", numbered(300), container=container)
    (source,) = find_sources(tmp_path)
    assert abs(source.frames - 300) <= 2 and source.long
    for start in (0, 100, 200, source.frames - 64):
        planes = Library().planes(source, start)
        assert abs(number(planes.y[0]) - start) <= 4
        assert planes.frames >= 60


def test_places_in_videos_of_varying_frame_rate_are_shares_of_their_duration(tmp_path: Path) -> None:
    times = [*range(200), *(200 + 10 * n for n in range(100))]
    write_video(tmp_path / "a.mkv", numbered(300), times=times)
    (source,) = find_sources(tmp_path)
    seen = {number(Library().planes(source, start).y[0]) for start in range(0, source.frames, source.frames // 10)}
    assert max(seen) > 250


def test_long_files_are_not_read_whole_to_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    count = sources._count

    def noting(path: Path) -> int:
        counted.append(path.name)
        return count(path)

    monkeypatch.setattr(sources, "_count", noting)
    write_video(tmp_path / "long.mkv", numbered(200))
    write_video(tmp_path / "short.mkv", numbered(20))
    assert [source.frames for source in find_sources(tmp_path)] == [200, 20]
    assert counted == ["short.mkv"]


def test_only_what_is_asked_for_is_read_of_long_videos(tmp_path: Path) -> None:
    clip = moving_clip(70, 96, seed=2)
    write_video(tmp_path / "a.mkv", clip)
    (source,) = find_sources(tmp_path)
    window = (10, 20, 32, 48)
    library = Library()
    rgb, planes = library.rgb(source, 4, window), library.planes(source, 4, window)
    assert rgb.base is not None and rgb.base.nbytes == 64 * 32 * 48 * 3
    assert np.array_equal(rgb, Library().rgb(source, 4)[:, 10:42, 20:68])
    assert np.array_equal(planes.y, clip.y[4:68, 10:42, 20:68])
    assert np.array_equal(planes.c, clip.c[:, 4:68, 5:21, 10:34])
    assert np.array_equal(library.picture(source, 4, 9), Library().rgb(source, 4)[9])


def test_short_videos_are_the_same_kept_or_not(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", moving_clip(12, 96, seed=2))
    (source,) = find_sources(tmp_path)
    kept, read = Library(), Library(budget=1)
    for window in ((0, 0, 96, 96), (2, 4, 40, 60)):
        assert np.array_equal(kept.rgb(source, 0, window), read.rgb(source, 0, window))
        assert np.array_equal(kept.planes(source, 0, window).c, read.planes(source, 0, window).c)
    assert np.array_equal(kept.picture(source, 0, 5), read.picture(source, 0, 5))


def test_room_is_made_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in range(4):
        Image.fromarray(picture(64, 64, name)).save(tmp_path / f"{name}.png")
    library = Library(budget=2 * 64 * 64 * 3)
    held: list[int] = []
    read = sources._read_still

    def noting(source: Source) -> sources.Rgb:
        held.append(library._bytes)
        return read(source)

    monkeypatch.setattr(sources, "_read_still", noting)
    for source in find_sources(tmp_path):
        library.rgb(source)
    assert held == [0, 64 * 64 * 3, 64 * 64 * 3, 64 * 64 * 3]


RAMP = np.linspace(0, 1, 64)[None].repeat(64, 0)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.png", Image.fromarray((RAMP * 65535).round().astype(np.uint16))),
        ("a.tif", Image.fromarray((RAMP * 65535).round().astype(np.int32))),
        ("a.tiff", Image.fromarray(RAMP.astype(np.float32))),
        ("b.png", Image.fromarray((RAMP * 255).round().astype(np.uint8))),
    ],
)
def test_greys_of_more_than_eight_bits_keep_their_range(tmp_path: Path, name: str, image: Image.Image) -> None:
    image.save(tmp_path / name)
    grey = Library().rgb(find_sources(tmp_path)[0])[0]
    assert grey.shape == (64, 64, 3)
    assert np.abs(grey[..., 0] - RAMP * 255).max() <= 1


def test_greys_whose_white_is_unknown_are_refused(tmp_path: Path) -> None:
    Image.fromarray((RAMP * 1000).astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableError, match=r"samples go from 0 to 1000; 0 to 1 are accepted"):
        Library().rgb(find_sources(tmp_path)[0])


def test_nothing_shows_through_transparent_pixels(tmp_path: Path) -> None:
    hidden = np.zeros((64, 64, 4), np.uint8)
    hidden[..., :3] = picture(64, 64)
    hidden[:32, :, 3] = 255
    Image.fromarray(hidden).save(tmp_path / "a.png")
    rgb = Library().rgb(find_sources(tmp_path)[0])[0]
    assert np.array_equal(rgb[:32], hidden[:32, :, :3])
    assert (rgb[32:] == 128).all()
