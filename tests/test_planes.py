"""Pictures that stay as their video has them: the same to look at, and untouched where nothing is drawn."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.video.frame import VideoFrame
from clips import picture, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt import Segmenter
from mcdrl_rt.types import Frame, Picture, Region, Segmentation, Shown, UInt8Array, VideoFormat, pixels_of
from mcdrl_rt.video.encoder import CODECS, H264
from mcdrl_rt.video.file import VideoFile
from mcdrl_rt.video.motion import Motion
from mcdrl_rt.video.overlay import Hud, draw
from mcdrl_rt.video.planes import FORMAT, Planes, sampled, scaled
from mcdrl_rt.video.region import crop_and_resize, find_region
from mcdrl_rt.video.rgb import ToPicture
from mcdrl_rt.video.source import open_source

SIZE = (96, 128)
TICK = Fraction(1, 25)


def planes_of(pixels: UInt8Array, matrix: str = "bt709") -> Planes:
    """Planes as a decoder has them, of a picture converted by FFmpeg."""
    name = {"bt709": "ITU709", "bt601": "ITU601"}[matrix]
    rgb = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return Planes.of(rgb.reformat(format=FORMAT, dst_colorspace=name, dst_color_range="MPEG"), matrix)


def smooth(seed: int, size: tuple[int, int] = SIZE) -> UInt8Array:
    """A picture of soft colours; no colour changes within two pixels, which 4:2:0 could not keep."""
    coarse = np.random.default_rng(seed).integers(30, 225, (3, 4, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def parts(planes: Planes) -> tuple[UInt8Array, ...]:
    return planes.luma, planes.blue, planes.red


def same(one: Planes, other: Planes) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def apart(one: UInt8Array, other: UInt8Array) -> int:
    """The largest difference between two pictures of one size, in grey levels."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


def found(labels: UInt8Array) -> Segmentation:
    weights = np.full(2, 0.5, np.float32)
    region = Region(0, 0, int(labels.shape[0]), int(labels.shape[1]))
    return Segmentation(labels, ("polyp", "ulcer"), weights, ("blur", "blood"), np.ones((2, 2), bool), region, 4.0)


@pytest.fixture(scope="module")
def procedure(data_root: Path) -> list[Frame]:
    """Real frames, as they are decoded."""
    with open_source(str(data_root / "video" / "colonoscopy_560x480_25fps.mp4")) as source:
        return list(source)[::6]


@pytest.mark.parametrize("matrix", ["bt709", "bt601"])
def test_planes_become_the_pixels_that_they_were(matrix: str) -> None:
    for seed in range(4):
        pixels = smooth(seed)
        planes = planes_of(pixels, matrix)
        assert planes.size == SIZE and apart(planes.pixels, pixels) <= 9  # swscale's fast way there and back
        assert planes.pixels is planes.pixels  # once
        assert apart(scaled(planes, lambda part: cv2.resize(part, SIZE[::-1])), pixels) <= 4
        other = {"bt709": "bt601", "bt601": "bt709"}[matrix]
        assert apart(Planes(*parts(planes), other).pixels, pixels) > 12  # the matrix matters


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_made_small_is_what_is_made_of_pixels(data: st.DataObject) -> None:
    planes = planes_of(smooth(data.draw(st.integers(0, 99))))
    top, left = data.draw(st.integers(0, SIZE[0] - 48)), data.draw(st.integers(0, SIZE[1] - 48))
    height, width = data.draw(st.integers(48, SIZE[0] - top)), data.draw(st.integers(48, SIZE[1] - left))
    size = data.draw(st.integers(24, 60)), data.draw(st.integers(24, 60))
    region = Region(top, left, height, width)
    one, other = (crop_and_resize(kind, region, size) for kind in (planes, planes.pixels))
    # swscale's fast way loses a level or two itself; at an odd edge, colour is half a pixel off
    assert one.shape == other.shape == (*size, 3) and np.abs(one.astype(int) - other).mean() < 6
    step = data.draw(st.integers(1, 30))
    places = slice(top, None, step), slice(left, None, step)
    assert apart(sampled(planes, *places), planes.pixels[places]) <= 4


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_lesions_are_drawn_on_planes_and_nothing_else_changes(data: st.DataObject) -> None:
    planes = planes_of(smooth(data.draw(st.integers(0, 99))))
    labels = np.zeros(SIZE, np.uint8)
    top, left = data.draw(st.integers(0, SIZE[0] - 1)), data.draw(st.integers(0, SIZE[1] - 1))
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    labels[top : top + height, left : left + width] = 1
    color = data.draw(st.tuples(*[st.integers(0, 255)] * 3))
    drawn, painted = (draw(kind, found(labels), colors=(color,), opacity=0.5) for kind in (planes, planes.pixels))
    near = cv2.dilate(labels, np.ones((9, 9), np.uint8)) > 0  # the outline reaches two pixels outwards, of colour four
    assert np.array_equal(drawn.luma[~near], planes.luma[~near])
    cells = near.reshape(SIZE[0] // 2, 2, SIZE[1] // 2, 2).any(axis=(1, 3))
    assert np.array_equal(drawn.blue[~cells], planes.blue[~cells])
    assert np.array_equal(drawn.red[~cells], planes.red[~cells])
    inside = cv2.erode(labels, np.ones((21, 21), np.uint8)) > 0  # away from the outline
    if inside.any():
        assert np.abs(drawn.pixels[inside].astype(int) - painted[inside]).mean() < 12
    # what 4:2:0 keeps of the outline is what an encoder would have kept of it
    assert np.abs(drawn.luma.astype(int) - planes_of(painted).luma).mean() < 3


def test_every_encoder_gets_a_frame_of_its_own() -> None:
    """The first gets the copy that was drawn on, without another one; all get the same picture."""
    planes = planes_of(smooth(0))
    copy = planes.copy()
    assert same(copy, planes) and not np.shares_memory(copy.luma, planes.luma)
    copy.luma[:40] = 7
    frames = [copy.frame() for _ in range(3)]
    assert np.shares_memory(np.frombuffer(frames[0].planes[0], np.uint8), copy.luma)
    for number, frame in enumerate(frames):
        frame.pts = number
        assert same(Planes.of(frame, copy.matrix), copy)
    assert [frame.pts for frame in frames] == [0, 1, 2]
    lent = planes.frame()
    assert not np.shares_memory(np.frombuffer(lent.planes[0], np.uint8), planes.luma)
    del frames, frame
    assert (copy.luma[:40] == 7).all()  # its memory is there for as long as it is


def test_decoded_frames_can_not_be_written_to(procedure: list[Frame]) -> None:
    planes = procedure[0].picture
    assert isinstance(planes, Planes)
    for plane in parts(planes):  # other frames are decoded from it
        with pytest.raises(ValueError, match="read-only"):
            plane[0, 0] = 0


def test_one_conversion_serves_all_threads(procedure: list[Frame]) -> None:
    got: list[UInt8Array] = []
    threads = [threading.Thread(target=lambda: got.append(procedure[1].pixels)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 6 and all(one is got[0] for one in got)


QUIET = {"x265-params": "log-level=none"}
FORMS: dict[str, tuple[dict[str, Any], bool]] = {
    "limited range": ({}, True),
    "full range": ({"pix_fmt": "yuvj420p", "tags": {"color_range": 2}}, False),
    "full colour": ({"pix_fmt": "yuv444p"}, False),
    "ten bits": ({"pix_fmt": "yuv420p10le", "codec": "libx265", "codec_options": QUIET}, True),
    "half the colours, in pairs": ({"pix_fmt": "yuyv422", "codec": "rawvideo"}, True),
    "colours in pairs": ({"pix_fmt": "nv12", "codec": "rawvideo"}, True),
    "half the colours, full range": ({"pix_fmt": "yuvj422p", "codec": "mjpeg"}, False),
    "odd sides": ({"size": (47, 63), "codec": "rawvideo"}, False),
    "turned": ({"rotation": (90.0, False, False)}, False),
    "BT.2020": ({"tags": {"colorspace": 9, "color_range": 1}}, False),
    "a matrix of long ago": ({"tags": {"colorspace": 7, "color_range": 1}}, False),
}


@pytest.mark.parametrize("form", FORMS)
def test_only_the_usual_form_stays_as_it_is(form: str, tmp_path: Path) -> None:
    how, stays = FORMS[form]
    clip = tmp_path / ("clip.mov" if "rotation" in how else "clip.nut")
    write_clip(clip, pictures=[smooth(seed, how.get("size", (48, 64))) for seed in range(12)], **how)
    with open_source(str(clip)) as source:
        frames = list(source)
    assert len(frames) == 12 and {isinstance(frame.picture, Planes) for frame in frames} == {stays}
    to_picture = ToPicture()
    with av.open(str(clip)) as container:
        expected = [to_picture.pixels(decoded) for decoded in container.decode(video=0)]
    for frame, pixels in zip(frames, expected, strict=True):
        assert frame.size == source.size
        assert np.abs(frame.pixels.astype(int) - pixels).mean() <= (3 if stays else 0)


def test_what_nothing_is_drawn_on_is_written_as_it_was_decoded(
    procedure: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a codec that loses nothing, the very planes come back; those of pixels do not."""
    monkeypatch.setitem(CODECS[H264].options, "crf", "0")
    given = [frame.picture for frame in procedure if isinstance(frame.picture, Planes)]
    form = VideoFormat(procedure[0].size, procedure[0].time_base, Fraction(25), given[0].matrix)

    def written(name: str, frames: Iterable[Frame]) -> list[Picture]:
        with VideoFile(tmp_path / name, H264, form) as sink:
            for frame in frames:
                sink.write(Shown(frame))
        with open_source(str(tmp_path / name)) as source:
            return [frame.picture for frame in source]

    came = written("planes.mp4", procedure)
    made = written("pixels.mp4", [frame.showing(frame.pixels) for frame in procedure])
    for before, after, converted in zip(given, came, made, strict=True):
        assert isinstance(after, Planes) and isinstance(converted, Planes)
        assert same(before, after) and not same(before, converted)


def test_an_overlay_looks_the_same_on_both(procedure: list[Frame]) -> None:
    labels = np.zeros(procedure[0].size, np.uint8)
    cv2.ellipse(labels, (300, 200), (90, 60), 30, 0, 360, 1, -1)
    cv2.ellipse(labels, (60, 90), (30, 20), 0, 0, 360, 2, -1)
    colors, hud = ((64, 255, 96), (64, 208, 255)), Hud("small", 40.0, "a note")
    for frame in procedure[:3]:
        before = frame.picture.copy()
        on_planes = draw(frame.picture, found(labels), colors=colors, hud=hud)
        assert isinstance(on_planes, Planes) and isinstance(frame.picture, Planes) and isinstance(before, Planes)
        assert same(frame.picture, before)  # it is left alone
        on_pixels = draw(frame.pixels, found(labels), colors=colors, hud=hud)
        # the outline's colour has half the pixels, as it has behind every encoder
        assert np.abs(on_planes.pixels.astype(int) - on_pixels).mean() < 1.5
        assert apart(on_planes.luma, planes_of(on_pixels, frame.picture.matrix).luma) <= 8


@pytest.mark.parametrize("size", [(90, 122), (318, 566), (1078, 1918)])  # rows that are padded in memory
def test_what_the_hud_says_looks_the_same_on_both(size: tuple[int, int]) -> None:
    red, labels = np.full((*size, 3), (170, 60, 50), np.uint8), np.zeros(size, np.uint8)
    planes = planes_of(red)
    labels[:8] = 2
    said = {"colors": ((64, 255, 96), (64, 208, 255)), "hud": Hud("small", 900.0, "gap, jaggy")}
    drawn, painted = (draw(kind, found(labels), opacity=0, **said) for kind in (planes, planes.pixels))
    strip = slice(size[0] // 2, None)
    touched = (painted[strip] != planes.pixels[strip]).any(axis=(1, 2))
    assert touched.any() and not touched[0]
    above = size[0] // 2 + int(np.argmax(touched))  # nothing but the strip is touched
    assert above % 2 == 0 and np.array_equal(drawn.luma[size[0] // 2 : above], planes.luma[size[0] // 2 : above])
    for plane, other in zip(parts(drawn)[1:], parts(planes)[1:], strict=True):
        assert np.array_equal(plane[size[0] // 4 : above // 2], other[size[0] // 4 : above // 2])
    kept = planes_of(painted)  # by an encoder
    for plane, other in zip(parts(drawn), parts(kept), strict=True):
        part = slice(plane.shape[0] // 2, None)
        assert np.abs(plane[part].astype(int) - other[part]).mean() < 2
    strip = slice(above, None)
    amber, expected = ((kind.pixels[strip].astype(int) @ (1, 0, -1) > 90) for kind in (drawn, kept))
    assert expected.sum() > 50 and abs(int(amber.sum()) - int(expected.sum())) < 0.2 * expected.sum()
    rows = [np.flatnonzero(part.any(axis=1)) for part in (amber, expected)]
    assert abs(rows[0][-1] - rows[1][-1]) <= 1  # down to the tails of its letters


@pytest.mark.parametrize("size", [(96, 128), (480, 640), (1080, 1920)])
def test_an_outline_has_its_colour_at_every_edge(size: tuple[int, int]) -> None:
    grey = planes_of(np.full((*size, 3), 110, np.uint8))
    drawn = draw(grey, found(np.ones(size, np.uint8)), colors=((64, 255, 96),), opacity=0.0)
    for plane in (drawn.blue, drawn.red):
        inside = int(plane[plane.shape[0] // 2, plane.shape[1] // 2])
        for edge in (plane[:2], plane[-2:], plane[:, :2].T, plane[:, -2:].T):
            assert (np.abs(edge[:, 2:-2].astype(int) - inside).max(axis=0) > 15).all()


@pytest.mark.parametrize("size", [(2, 2), (8, 300), (16, 300), (300, 8), (34, 42)])
def test_tiny_planes_do_not_fail(size: tuple[int, int]) -> None:
    planes = planes_of(np.full((*size, 3), 110, np.uint8))
    colors = ((64, 255, 96), (64, 208, 255))
    drawn = draw(planes, found(np.ones(size, np.uint8)), colors=colors, hud=Hud("m", 900.0, "paused"))
    assert drawn.size == size


def test_raw_frames_of_a_device_are_copied() -> None:
    """They lie in packets, and a device takes its packets' memory with it when it is closed."""
    video = planes_of(smooth(0)).frame()
    lent, kept = ToPicture(lent=True)(video), ToPicture()(video)
    assert isinstance(lent, Planes) and isinstance(kept, Planes) and same(lent, kept)
    for plane in video.planes:
        np.frombuffer(plane, np.uint8)[:] = 7
    assert (kept.luma == 7).all() and not (lent.luma == 7).any()
    pixels = smooth(1)
    rgb = VideoFrame.from_ndarray(pixels, format="rgb24")
    picture = ToPicture(lent=True)(rgb)
    np.frombuffer(rgb.planes[0], np.uint8)[:] = 7
    assert isinstance(picture, np.ndarray) and np.array_equal(picture, pixels)


def test_encoders_that_pair_colours_take_planes_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(CODECS, H264, dataclasses.replace(CODECS[H264], pix_fmt="nv12", options={"crf": "0"}))
    given = planes_of(smooth(3))
    with VideoFile(tmp_path / "a.mp4", H264, VideoFormat(SIZE, TICK, Fraction(25))) as sink:
        sink.write(Shown(Frame(given, 0, TICK)))
    with open_source(str(tmp_path / "a.mp4")) as source:
        (frame,) = source
    assert isinstance(frame.picture, Planes) and same(frame.picture, given)


def test_a_model_and_the_motion_see_the_same(procedure: list[Frame]) -> None:
    segmenter, moved = Segmenter.load(), (Motion(), Motion())
    for frame in procedure:
        kinds: tuple[Picture, ...] = (frame.picture, frame.pixels)
        one, other = map(find_region, kinds)
        assert one == other
        seen = [crop_and_resize(kind, one, segmenter.spec.input_size).astype(int) for kind in kinds]
        assert np.abs(seen[0] - seen[1]).mean() < 1.5  # swscale's fast way is a level darker than the exact one
        first, second = (segmenter(kind) for kind in kinds)
        assert first.region == second.region and first.labels.shape == second.labels.shape == frame.size
        assert np.allclose(first.confounders, second.confounders, atol=0.05)
        for motion, kind in zip(moved, kinds, strict=True):
            motion.follow(kind, frame.index)
    labels = np.zeros(procedure[0].size, np.uint8)
    labels[100:300, 150:400] = 1
    last = procedure[-2].index
    one_way, other_way = (motion.move(labels, last) for motion in moved)
    assert (one_way is None) == (other_way is None)
    if one_way is not None and other_way is not None:
        assert np.count_nonzero(one_way != other_way) < 0.02 * labels.sum()


def test_pixels_of_a_picture_are_itself() -> None:
    pixels = picture(0)
    assert pixels_of(pixels) is pixels and Frame(pixels, 0, TICK).pixels is pixels
