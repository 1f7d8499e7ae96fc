"""Device path: the same labels and overlay as the processor's own way, wherever a frame comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.device import DeviceSegmenter
from mcdrl_rt.engine.pixels import Nv12, Scaler, from_video_frame, paint, to_rgb
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.errors import EngineError, SourceError
from mcdrl_rt.types import CLASS_COLORS, Region, UInt8Array
from mcdrl_rt.video.overlay import Hud, draw, draw_hud
from mcdrl_rt.video.phantom import Phantom
from mcdrl_rt.video.planes import Planes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine(small_checkpoint: Path) -> TorchEngine:
    return TorchEngine.from_checkpoint(small_checkpoint)


@pytest.fixture(scope="module")
def shipped() -> TorchEngine:
    """The embedded default: under random weights, a rounded grey level already moves labels."""
    return TorchEngine.from_checkpoint(DEFAULT_CHECKPOINT)


def near(labels: UInt8Array, pixels: int) -> UInt8Array:
    """Whether a lesion is at most so many pixels away."""
    side = 2 * pixels + 1
    return cv2.dilate((labels > 0).astype(np.uint8), np.ones((side, side), np.uint8)) > 0


def inside(labels: UInt8Array, pixels: int) -> UInt8Array:
    """Whether only pixels of the same label are at most so many pixels away."""
    kernel = np.ones((2 * pixels + 1,) * 2, np.uint8)
    return (labels > 0) & (cv2.dilate(labels, kernel) == cv2.erode(labels, kernel))


# --- pieces ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), target=st.sampled_from([(64, 64), (40, 72), (128, 160)]))
def test_resizing_is_opencvs(height: int, width: int, target: tuple[int, int]) -> None:
    random = np.random.default_rng(height * 1000 + width)
    frame = random.integers(0, 256, (height + 3, width + 5, 3)).astype(np.uint8)
    region = Region(1, 2, height, width)
    shrinking = height * width > target[0] * target[1]
    how = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    expected = cv2.resize(frame[region.slices], target[::-1], interpolation=how).astype(int)
    got = Scaler(region, target, CPU).down(torch.from_numpy(frame)).numpy()
    assert np.abs(got - expected).max() <= 1
    # halves go up or down, and enlarging OpenCV counts in 1/2048: never more than one grey level
    assert (got != expected).mean() < 0.3


def test_labels_are_background_outside_the_region_and_named_inside() -> None:
    score = torch.tensor([[0, 127, 128, 255]], dtype=torch.uint8)
    label = torch.tensor([[3, 3, 2, 1]], dtype=torch.uint8)
    scaler = Scaler(Region(1, 2, 1, 4), (1, 4), CPU)
    expected = np.zeros((3, 7), np.uint8)
    expected[1, 2:6] = [0, 0, 2, 1]
    assert np.array_equal(scaler.labels(score, label, (3, 7), classes=3).numpy(), expected)
    assert scaler.labels(score, label, (3, 7), classes=1).max() == 1


def test_outline_and_tint_are_where_they_belong() -> None:
    frame = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(90, 120, dtype=torch.uint8)
    labels[20:50, 30:70], labels[50:80, 40:60] = 1, 2
    colors = torch.tensor([(0, 0, 0), *CLASS_COLORS[:2]], dtype=torch.float32)
    before = frame.clone()
    shown = paint(frame, labels, colors, 0.35, Region(0, 0, 90, 120))
    assert torch.equal(frame, before)
    assert torch.equal(shown[:19], frame[:19]) and torch.equal(shown[:, :29], frame[:, :29])
    assert shown[19, 40].tolist() == shown[20, 40].tolist() == list(CLASS_COLORS[0])  # two pixels wide, opaque
    assert shown[79, 50].tolist() == shown[50, 50].tolist() == list(CLASS_COLORS[1])
    blend = 0.65 * frame[35, 50] + 0.35 * colors[1]
    assert (shown[35, 50] - blend).abs().max() <= 1.01
    cut = paint(frame, labels, colors, 0.35, Region(20, 30, 60, 40))  # a lesion up to the region's edge
    assert torch.equal(cut, shown)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (31, 17)])
def test_lesion_that_fills_a_tiny_frame_is_painted(size: tuple[int, int]) -> None:
    frame, labels = torch.zeros((*size, 3), dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)
    shown = paint(frame, labels, torch.tensor([(0.0, 0, 0), (64, 255, 96)]), 0.5, Region(0, 0, *size))
    assert shown.shape == frame.shape and (shown[..., 1] > 0).all()


# --- the whole way -----------------------------------------------------------------------------------------------


def scope(size: tuple[int, int], seed: int) -> UInt8Array:
    """A phantom's picture in a black surround."""
    rgb = np.zeros((*size, 3), np.uint8)
    height, width = size[0] - 40, size[1] - 120
    rgb[20 : 20 + height, 100 : 100 + width] = Phantom((height, width), seed=seed).render(20).pixels
    return rgb


@pytest.mark.parametrize("size", [(300, 420), (480, 640)])
def test_labels_and_overlay_are_the_processors(shipped: TorchEngine, size: tuple[int, int]) -> None:
    from mcdrl_rt.segmenter import Segmenter

    here, device = Segmenter(shipped), DeviceSegmenter(shipped)
    for seed in range(3):
        rgb = scope(size, seed)
        kept = rgb.copy()
        expected = here(rgb)
        pending = device.begin(rgb, opacity=0.35)
        got, shown = pending.finish()
        assert shown is not None and np.array_equal(rgb, kept)
        assert (got.labels != expected.labels).mean() <= 0.002
        assert (got.labels.dtype, got.region) == (np.uint8, expected.region)
        assert got.region.left > 50
        np.testing.assert_allclose(got.confounders, expected.confounders, atol=0.01)
        assert (got.selected == expected.selected).mean() > 0.95
        assert set(got.boxes) == set(np.unique(got.labels).tolist()) - {0} != set()
        drawn = draw(rgb, got, colors=shipped.spec.colors)
        assert np.array_equal(shown[~near(got.labels, 3)], rgb[~near(got.labels, 3)])
        interior = inside(got.labels, 4)
        assert interior.any() and np.abs(shown[interior].astype(int) - drawn[interior]).max() <= 1
        # the outline and nothing else may differ, as one is smoothed
        assert (np.abs(shown.astype(int) - drawn).max(axis=2) > 1).mean() < 0.01
        hud = Hud("m", 10.0)
        complete = draw(rgb, got, colors=shipped.spec.colors, hud=hud)
        draw_hud(shown, got, hud, shipped.spec.colors)
        assert np.abs(shown[-8:].astype(int) - complete[-8:]).mean() < 3


def test_a_tensor_is_as_good_as_an_array(engine: TorchEngine) -> None:
    rgb = scope((300, 420), 4)
    device = DeviceSegmenter(engine)
    expected = device(rgb)
    mirrored = torch.from_numpy(np.ascontiguousarray(rgb[:, ::-1])).flip(1)
    for frame in (torch.from_numpy(rgb), mirrored):
        got = device(frame)
        assert np.array_equal(got.labels, expected.labels) and got.region == expected.region
    assert device.begin(rgb).finish()[1] is None


def test_planes_of_a_video_are_uploaded_as_they_are(shipped: TorchEngine) -> None:
    """Here on the processor; on a GPU the same operations run on what was uploaded."""
    from mcdrl_rt.segmenter import Segmenter

    video = decoded(scope((300, 420), 0), "yuv420p", "ITU601", False)
    planes = Planes.of(video, "bt601")
    device = DeviceSegmenter(shipped)
    found, shown = device.show(planes, 0.35)
    expected = Segmenter(shipped)(planes)
    assert shown is None and found.region == expected.region and expected.labels.any()
    assert (found.labels != expected.labels).mean() <= 0.005
    np.testing.assert_allclose(found.confounders, expected.confounders, atol=0.02)
    stream = device.for_stream()
    assert np.array_equal(stream(planes).labels, found.labels)


def test_frames_begun_together_do_not_mix(engine: TorchEngine) -> None:
    device = DeviceSegmenter(engine).for_stream()
    frames = [scope((300, 420), seed) for seed in range(3)]
    alone = [DeviceSegmenter(engine).for_stream()(frame) for frame in frames]
    together = [pending.finish()[0] for pending in [device.begin(frame) for frame in frames]]
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.labels, other.labels) or one.region != other.region
    assert {one.region for one in together} == {together[0].region}  # a stream keeps its field of view


def test_frame_that_changes_its_size_is_followed(engine: TorchEngine) -> None:
    device = DeviceSegmenter(engine).for_stream()
    for size in ((300, 420), (240, 380), (300, 420)):
        assert device(scope(size, 1)).labels.shape == size


@pytest.mark.parametrize(
    "bad",
    [
        None,
        np.zeros((40, 50), np.uint8),
        np.zeros((40, 50, 4), np.uint8),
        np.zeros((40, 50, 3), np.float32),
        torch.zeros(40, 50, 3),
        torch.zeros(3, 40, 50, dtype=torch.uint8),
        torch.zeros(0, 50, 3, dtype=torch.uint8),
    ],
    ids=lambda bad: f"{type(bad).__name__}{tuple(getattr(bad, 'shape', ()))}",
)
def test_what_is_no_picture_is_refused_in_one_line(engine: TorchEngine, bad: Any) -> None:
    with pytest.raises(SourceError, match=r"\(H, W, 3\) uint8, RGB.*; got") as caught:
        DeviceSegmenter(engine)(bad)
    assert "\n" not in str(caught.value)


def test_failure_of_the_network_is_an_engine_error(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(engine, "run", fail)
    with pytest.raises(EngineError, match=r"the engine failed on a frame: out of memory$"):
        DeviceSegmenter(engine)(scope((300, 420), 1))


# --- a decoder's frames ------------------------------------------------------------------------------------------


def decoded(rgb: UInt8Array, layout: str, matrix: str, full: bool) -> Any:
    """A frame as a decoder leaves it, in host memory: the planes are handed over as those in GPU memory are."""
    av = pytest.importorskip("av")
    ranges = "JPEG" if full else "MPEG"
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format=layout, dst_colorspace=matrix, dst_color_range=ranges
    )
    return frame


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", ["ITU601", "ITU709"])
@pytest.mark.parametrize("layout", ["nv12", "p010le"])
def test_planes_of_a_decoder_become_the_picture(layout: str, matrix: str, full: bool) -> None:
    rgb = cv2.GaussianBlur(scope((240, 380), 2), (0, 0), 3).astype(np.uint8)  # chroma is halved: nothing sharp
    planes = from_video_frame(decoded(rgb, layout, matrix, full))
    assert planes.luma.shape == (240, 380) and planes.chroma.shape == (120, 190, 2)
    names = {"ITU601": "bt601", "ITU709": "bt709"}
    got = to_rgb(planes._replace(matrix=names[matrix], full_range=full)).numpy()
    difference = np.abs(got.astype(int) - rgb)
    assert (got.shape, got.dtype) == (rgb.shape, np.uint8)
    assert difference.mean() < 2 and np.percentile(difference, 99) <= 8
    other = names["ITU601" if matrix == "ITU709" else "ITU709"]
    wrong = to_rgb(planes._replace(matrix=other, full_range=full)).numpy()
    assert np.abs(wrong.astype(int) - rgb).mean() > difference.mean()


def test_decoders_frame_is_segmented_without_the_decoder(shipped: TorchEngine) -> None:
    rgb = scope((480, 640), 1)
    frame = decoded(rgb, "nv12", "ITU601", full=False)
    got = DeviceSegmenter(shipped)(from_video_frame(frame))
    expected = DeviceSegmenter(shipped)(frame.reformat(format="rgb24", src_colorspace="ITU601").to_ndarray())
    assert got.labels.shape == (480, 640)
    assert got.labels.any() and (got.labels != expected.labels).mean() < 0.005
    assert got.region.left > 50


def test_matrix_and_range_are_read_off_the_frame() -> None:
    frame = decoded(scope((240, 380), 2), "nv12", "ITU601", full=False)
    frame.colorspace, frame.color_range = 2, 0
    assert from_video_frame(frame)[2:] == ("bt601", False)  # not said: by its size
    frame.colorspace, frame.color_range = 1, 2
    assert from_video_frame(frame)[2:] == ("bt709", True)


def test_other_layouts_are_refused() -> None:
    with pytest.raises(SourceError, match="NV12 or P010, not yuv420p"):
        from_video_frame(decoded(scope((240, 380), 2), "yuv420p", "ITU601", full=False))


# --- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_on_cuda_the_labels_are_the_cpus_and_nothing_is_waited_for_but_the_end(
    shipped: TorchEngine,
) -> None:
    on_cuda = TorchEngine.from_checkpoint(DEFAULT_CHECKPOINT, "cuda")
    device, here = (DeviceSegmenter(engine).for_stream() for engine in (on_cuda, shipped))
    for seed in range(4):
        rgb = scope((480, 640), seed)
        frame = torch.from_numpy(rgb).cuda()
        if seed:  # the first frame is looked at for the field of view, which waits
            torch.cuda.set_sync_debug_mode("error")
        try:
            pending = device.begin(frame, opacity=0.35)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        got, shown = pending.finish()
        expected, drawn = here.begin(rgb, opacity=0.35).finish()
        assert pending.labels.is_cuda and got.region == expected.region
        assert (got.labels != expected.labels).mean() <= 0.005
        assert shown is not None and drawn is not None and (shown != drawn).any(axis=2).mean() <= 0.02


@pytest.mark.gpu
def test_decoders_planes_in_gpu_memory_are_taken_where_they_are(small_checkpoint: Path) -> None:
    on_cuda = TorchEngine.from_checkpoint(small_checkpoint, "cuda")
    generator = torch.Generator().manual_seed(0)
    luma = torch.randint(16, 235, (240, 320), dtype=torch.uint8, generator=generator)
    chroma = torch.randint(16, 240, (120, 160, 2), dtype=torch.uint8, generator=generator)
    expected = to_rgb(Nv12(luma, chroma))
    got = to_rgb(Nv12(luma.cuda(), chroma.cuda()))
    assert got.is_cuda and (got.cpu().int() - expected.int()).abs().max() <= 1
    pending = DeviceSegmenter(on_cuda).begin(Nv12(luma.cuda(), chroma.cuda()))
    assert pending.finish()[0].labels.shape == (240, 320)
