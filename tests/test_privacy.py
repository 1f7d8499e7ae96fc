"""A procedure without a name: nothing that says who it is of is in any of the results."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import read_pixels, write_audio, write_clip
from streams import BrightEngine
from test_field import SIZE, form, tissue, write

from mcdrl_rt.offline import Settings, plan, process, pseudonym
from mcdrl_rt.offline.privacy import Deidentified
from mcdrl_rt.offline.recording import open_recording, tally_of
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.source import open_source

SECRET = "Doe_Jane"
SETTINGS = Settings(masks=("ffv1", "coco"), segment_s=0.5, private=True)
ROOM = np.full((*SIZE, 3), (150, 155, 160), np.uint8)


def pictures() -> tuple[list[UInt8Array], list[UInt8Array]]:
    """Two seconds in a body with a name beside and on the picture, then a second in a room; and where the names are."""
    inside = form("octagon", 0.7)
    shown, inks = [], []
    for index in range(60):
        seen = ROOM if index >= 40 else tissue(index)
        rgb = cv2.bitwise_and(seen, seen, mask=inside)
        beside, ink = write(rgb, "DOE, JANE", (5, 20))
        both, more = write(beside, "1950", (200, 200))
        shown.append(both)
        inks.append(ink | more)
    return shown, inks


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A file that says it everywhere: its name, folder, title, sound, and its pictures."""
    bare, sound = tmp_path / "bare.mkv", write_audio(tmp_path / "voice.wav")
    options = {"g": "5", "bf": "0", "crf": "10"}
    write_clip(bare, size=SIZE, pts=range(60), pictures=pictures()[0], rate=Fraction(20), codec_options=options)
    video = tmp_path / "in" / SECRET / f"{SECRET}.mkv"
    video.parent.mkdir(parents=True)
    with av.open(bare) as source, av.open(sound) as voice, av.open(video, "w") as target:
        target.metadata.update(title=SECRET, comment=SECRET, creation_time="2020-01-01T00:00:00Z")
        given = (source.streams.video[0], voice.streams.audio[0])
        streams = {stream.type: target.add_stream_from_template(stream) for stream in given}
        streams["video"].metadata["title"] = SECRET
        for container in (source, voice):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.type]
                    target.mux(packet)
    return tmp_path / "in"


def test_no_result_says_who_it_is_of(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (outcome,) = process(plan([recording], out, pseudonym), out, Segmenter(BrightEngine()), SETTINGS)
    assert outcome.error is None and outcome.summary is not None and outcome.summary.frames_out == 60
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) == 7  # six results and the lock
    for path in files:
        assert SECRET not in str(path.relative_to(out))
        content = path.read_bytes()
        assert SECRET.encode() not in content and b"2020-01" not in content, path
        assert str(tmp_path).encode() not in content.replace(str(out).encode(), b""), path
    (video,) = [path for path in files if path.name.endswith(".annotated.mp4")]
    with av.open(video) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    hud = SIZE[0] - 60  # what we write ourselves is below
    for index, (shown, ink) in enumerate(zip(read_pixels(video), pictures()[1], strict=True)):
        assert shown[:hud][ink[:hud]].max() < 60, index
        dark = bool(shown[:hud].max() < 60)
        assert dark == (index >= 40), index


@pytest.mark.parametrize(("gop", "moves"), [(1, True), (999, True), (999, False)])
def test_a_name_on_the_picture_is_found_however_few_keyframes_there_are(tmp_path: Path, gop: int, moves: bool) -> None:
    written = [write(tissue(index * moves), "DOE, JANE", (200, 200)) for index in range(64)]
    shown, ink = [picture for picture, _ in written], written[0][1]
    options = {"g": str(gop), "sc_threshold": "0", "crf": "10", "preset": "ultrafast"}
    video = write_clip(tmp_path / "a.mkv", size=SIZE, pts=range(64), pictures=shown, codec_options=options)
    recording = open_recording(video, private=True)
    (segment,) = recording.segments(60)
    with recording.open(segment) as source:
        frames = list(source)
    assert len(frames) == 64
    assert all(frame.pixels.any() and not frame.pixels[ink].any() for frame in frames)
    verdict = recording.verdict([tally_of(source)])
    assert verdict is None if moves else verdict is not None and "its picture hardly moves" in verdict


def test_a_room_is_blanked_wherever_segments_begin(tmp_path: Path) -> None:
    seen = [*[tissue] * 24, *[None] * 10, *[tissue] * 8, *[None] * 20, *[tissue] * 60]  # one look of 0.4 s between
    shown = [ROOM if one is None else one(index) for index, one in enumerate(seen)]
    options = {"g": "2", "bf": "0", "crf": "10"}
    video = write_clip(
        tmp_path / "a.mkv", size=SIZE, pts=range(len(shown)), pictures=shown, rate=Fraction(20), codec_options=options
    )
    dark = {}
    for segment_s in (60.0, 1.0, 0.1):
        recording = open_recording(video, private=True)
        dark[segment_s] = []
        for segment in recording.segments(segment_s):
            with recording.open(segment) as source:
                dark[segment_s] += [not frame.pixels.any() for frame in source]
    assert dark[60.0] == [False] * 24 + [True] * 38 + [True] * 25 + [False] * 35
    assert dark[1.0] == dark[0.1] == dark[60.0]


def test_a_name_is_the_same_each_time_and_another_for_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCDRL_STATE", str(tmp_path / "one"))
    place = Path(SECRET) / "day 1"
    first = pseudonym(place)
    assert pseudonym(place) == first != pseudonym(Path("Doe_John") / "day 1")
    assert len(first.parts) == 2 and all(part.isalnum() and len(part) == 16 for part in first.parts)
    assert pseudonym(Path("Doe_John") / "day 1").name == first.name  # folders stay folders
    monkeypatch.setenv("MCDRL_STATE", str(tmp_path / "two"))
    assert pseudonym(place) != first


def test_pictures_are_looked_at_one_by_one(tmp_path: Path) -> None:
    for index, rgb in enumerate(pictures()[0][:3]):
        cv2.imwrite(str(tmp_path / f"{index}.png"), rgb[..., ::-1])
    with Deidentified(open_source(str(tmp_path)), None) as source:
        frames = list(source)
    outside = cv2.dilate(form("octagon", 0.7), np.ones((7, 7))) == 0
    assert len(frames) == 3 and all(frame.pixels.any() and not frame.pixels[outside].any() for frame in frames)


def test_no_message_that_is_kept_names_a_picture(tmp_path: Path) -> None:
    folder, out = tmp_path / "in" / SECRET, tmp_path / "out"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / f"{SECRET}_2.png"), pictures()[0][0][..., ::-1])
    for number in (3, 10):  # in the order of their numbers
        (folder / f"{SECRET}_{number}.png").touch()
    (outcome,) = process(plan([folder], out, pseudonym), out, Segmenter(BrightEngine()), SETTINGS)
    assert outcome.summary is not None and outcome.summary.problem is not None
    assert outcome.summary.problem.startswith("2 of the files could not be read; picture 2 is empty (0 bytes)")
    for path in (path for path in out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert SECRET.encode() not in content and str(tmp_path / "in").encode() not in content, path


def test_names_with_and_without_are_never_in_one_folder(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(process(plan([recording], out, pseudonym), out, Segmenter(BrightEngine()), SETTINGS))
    plain = dataclasses.replace(SETTINGS, private=False)
    with pytest.raises(Exception, match="is of another job"):
        list(process(plan([recording], out), out, Segmenter(BrightEngine()), plain))


def test_videos_carry_no_tag_of_the_inputs(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(process(plan([recording], out, pseudonym), out, Segmenter(BrightEngine()), SETTINGS))
    videos = [*out.rglob("*.mp4"), *out.rglob("*.mkv")]
    assert len(videos) == 2
    for path in videos:
        with av.open(path) as container:
            tags = {**container.metadata, **container.streams[0].metadata}
        ours = {"major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id"}
        assert {name.lower() for name in tags} <= ours | {"duration", "language"}, tags
