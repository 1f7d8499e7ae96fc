"""The command line: every command as it is typed, and every mistake answered by one clear line."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from clips import read_pixels, read_pts, with_sound, write_clip

from mcdrl_rt import __version__, cli, commands, console
from mcdrl_rt.stream.presenter import Presenter, Segmented
from mcdrl_rt.types import Frame

PHANTOM = "phantom:size=160x128"
CLI = [sys.executable, "-m", "mcdrl_rt.cli"]
Start = Callable[..., "subprocess.Popen[str]"]


def run(*arguments: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without a terminal."""
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        env=os.environ | {"COLUMNS": "80"} | environment,
    )


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """The command in this process: all of it but the start of Python, which would be most of the time."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(commands, "leave", sys.exit)  # threads of other tests are no reason to end this process

    def run_here(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mcdrl-rt", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        code = exit_.value.code
        return Ended(code if isinstance(code, int) else 0, *capfd.readouterr())

    yield run_here
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def engine(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_model``, built by the command."""
    path = tmp_path_factory.mktemp("engine") / "small.xml"
    ended = run("build", "--model", small_checkpoint, "--output", path, "--precision", "fp32")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1].startswith(f"{path}: ready, fp32, ")
    assert sorted(file.name for file in path.parent.iterdir()) == ["small.bin", "small.xml", "small.xml.json"]
    return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that can be named by mistake."""
    folder = tmp_path_factory.mktemp("shelf")
    write_clip(folder / "v.mp4", size=(96, 128))
    (folder / "link.mp4").symlink_to("v.mp4")
    write_clip(folder / "long.ts", size=(96, 128), pts=range(100), codec_options={"g": "5", "bf": "0"})
    (folder / "text.mp4").write_text("This is not a video.\n")
    (folder / "empty.mp4").touch()
    (folder / "folder").mkdir()
    (folder / "nothing").mkdir()
    (folder / "foreign.safetensors").write_bytes(safetensors({}))
    (folder / "corrupt.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "lone.xml").write_text("<net/>")
    return folder


def safetensors(header: dict[str, object]) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# --- what works ---------------------------------------------------------------------------------------------------


def test_stream_the_real_procedure(data_root: Path, tmp_path: Path) -> None:
    """The embedded model on a real colonoscopy: what the README's first line promises."""
    video, output = data_root / "video" / "colonoscopy_560x480_25fps.mp4", tmp_path / "out.mp4"
    ended = run("stream", "--input", video, "--output", output)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    *building, first, second = ended.stderr.splitlines()
    assert [line[:36] for line in building] in ([], ["building the engine of mcdrl-small f"])
    assert first.startswith(f"{video.name} → {output}: 53 frames, ")
    assert second.startswith("  ") and len(second) <= 80
    assert read_pts(output) == read_pts(video)
    assert all(picture.shape == (480, 560, 3) for picture in read_pixels(output))
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_stream_with_a_built_engine_as_json(engine: Path, shelf: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    ended = run("stream", "--input", shelf / "v.mp4", "--output", output, "--model", engine, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    summary = json.loads(ended.stdout)
    assert (summary["frames_in"], summary["frames_out"], summary["frames_dropped"]) == (12, 12, 0)
    assert (summary["source"], summary["output"], summary["model"]) == ("v.mp4", str(output), "small")
    assert (summary["engine"], summary["stopped"], summary["problem"]) == ("openvino fp32 CPU", False, None)
    assert summary["seconds"] > 0 and summary["stages"]["segment"]["p95_ms"] > 0
    assert len(read_pts(output)) == 12


def test_stream_the_phantom(engine: Path, here: Callable[..., Ended], tmp_path: Path) -> None:
    output = tmp_path / "out [1].mp4"  # a bracket is no colour
    uri = "phantom:site=blood,size=160x128,frames=5,fps=10"
    ended = here("stream", "--input", uri, "--output", output, "--model", engine)
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.splitlines()[0].startswith(f"phantom → {output}: 5 frames, ")
    assert [float(time) for time in read_pts(output)] == [0, 0.1, 0.2, 0.3, 0.4]


def test_stream_with_the_torch_engine(small_checkpoint: Path, here: Callable[..., Ended], tmp_path: Path) -> None:
    output = tmp_path / "out.avi"
    uri = "phantom:size=160x128,frames=2"
    ended = here("stream", "--input", uri, "--output", output, "--model", small_checkpoint, "--engine", "torch")
    assert (ended.code, ended.out) == (0, "")
    assert "; torch fp32 cpu, " in ended.err
    assert len(read_pts(output)) == 2


def test_process_a_folder(engine: Path, tmp_path: Path) -> None:
    """All results; the label video is what Segmenter says, one bad file costs only itself, and done is done."""
    from mcdrl_rt import Segmenter
    from mcdrl_rt.video.source import open_source

    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "a.mp4", size=(96, 128), pts=[0, 1, 4])
    (tmp_path / "in" / "bad.mp4").write_text("not a video")
    write_clip(tmp_path / "in" / "c.mkv", size=(96, 128), pts=range(3))
    ended = run("process", tmp_path / "in", "--output", tmp_path / "out", "--model", engine, "--json")
    assert ended.returncode == 1
    ends = ("annotated.mp4", "frames.parquet", "labels.mkv", "report.html", "summary.json")
    results = [".mcdrl-rt.lock", *(f"{name}.{end}" for name in "ac" for end in ends)]
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == results
    a, bad, c = map(json.loads, ended.stdout.splitlines())
    assert [line["source"] for line in (a, bad, c)] == [str(tmp_path / "in" / n) for n in ("a.mp4", "bad.mp4", "c.mkv")]
    assert (a["frames_out"], c["frames_out"], set(bad)) == (3, 3, {"source", "error"})
    error, count, failed = ended.stderr.splitlines()
    assert error == f"error: {bad['error']}" and "bad.mp4" in error
    assert (count, failed) == ("1 of 3 procedures failed:", f"  {tmp_path / 'in' / 'bad.mp4'}")
    assert read_pts(tmp_path / "out" / "a.annotated.mp4") == read_pts(tmp_path / "in" / "a.mp4")

    segmenter = Segmenter.load(engine).for_stream()
    with open_source(str(tmp_path / "in" / "a.mp4")) as source:
        expected = [segmenter(frame.picture).labels for frame in source]
    assert any(labels.any() for labels in expected)
    decoded = read_pixels(tmp_path / "out" / "a.labels.mkv")
    np.testing.assert_array_equal(np.stack(decoded)[..., 0], np.stack(expected))

    (tmp_path / "in" / "bad.mp4").unlink()
    again = run("process", tmp_path / "in", "--output", tmp_path / "out", "--model", engine)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr.splitlines() == [f"{tmp_path / 'in' / name}: already done" for name in ("a.mp4", "c.mkv")]
    other = run("process", tmp_path / "in", "--output", tmp_path / "out", "--model", engine, "--masks", "none")
    assert other.returncode == 1 and "(settings masks: ffv1 there, none now)" in other.stderr
    assert len(other.stderr.splitlines()) == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">/dev/full"])
def test_standard_streams_may_be_closed_or_full(engine: Path, tmp_path: Path, closed: str) -> None:
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", size=(96, 128), pts=range(3))
    command = [*CLI, "process", tmp_path / "a.mp4", tmp_path / "b.mp4", "--output", tmp_path, "--model", engine]
    ended = subprocess.run(["bash", "-c", f'"$@" --json {closed}', "bash", *map(str, command)], capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert (tmp_path / "a.labels.mkv").is_file() and (tmp_path / "b.labels.mkv").is_file()


@pytest.mark.parametrize("others", [["o.mp4"], []])
def test_an_output_that_was_lost_is_not_among_what_was_written(
    others: list[str], engine: Path, shelf: Path, here: Callable[..., Ended], tmp_path: Path
) -> None:
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    names = [str(tmp_path / name) for name in (*others, "full.jsonl")]
    command = ["stream", "--input", shelf / "v.mp4", "--model", engine]
    for name in names:
        command += ["--output", name]
    ended, programs = here(*command), here(*command, "--json")
    assert (ended.code, programs.code) == (1, 1)
    why = f"cannot write {names[-1]}: the disk is full"
    lines = [line for line in ended.err.splitlines() if "the others go on" not in line]
    if not others:
        assert lines == [f"error: {why}"] and json.loads(programs.out) == {"source": "v.mp4", "error": why}
        return
    assert lines[0].startswith(f"v.mp4 → {names[0]}: 12 frames") and lines[-1] == f"error: {names[-1]} was lost: {why}"
    summary = json.loads(programs.out)
    assert (summary["output"], summary["lost"], summary["problem"]) == (names[0], {names[-1]: why}, None)


def test_a_truncated_video_is_processed_as_far_as_it_goes(
    engine: Path, here: Callable[..., Ended], tmp_path: Path
) -> None:
    noise = [np.random.default_rng(i).integers(0, 255, (48, 64, 3)).astype(np.uint8) for i in range(40)]
    whole = write_clip(
        tmp_path / "whole.mp4",
        pts=range(40),
        pictures=noise,
        codec_options={"g": "10", "bf": "0"},
        container_options={"movflags": "faststart"},
    ).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    ended = here("stream", "--input", tmp_path / "cut.mp4", "--output", tmp_path / "out.mp4", "--model", engine)
    assert ended.code == commands.FLAWED
    written = len(read_pts(tmp_path / "out.mp4"))
    assert 10 < written < 30
    assert ended.err.splitlines()[-1].startswith(f"warning: truncated: decoded {written} of about 40 frames; ")


def test_doctor_lists_everything(here: Callable[..., Ended]) -> None:
    ended = here("doctor")
    assert (ended.code, ended.err) == (0, "")
    names = [line[2:].partition(":")[0] for line in ended.out.splitlines()]
    expected = ["mcdrl-rt", "NVIDIA GPU", "fused operator", "PyTorch", "TensorRT", "OpenVINO", "int8", "codecs"]
    assert names == [*expected, "COCO", "capture devices", "default model", "engines kept"]
    assert {line[0] for line in ended.out.splitlines()} <= {"✓", "–"}
    assert "default model: mcdrl-small, classes polyp, sees 288×288, 5.6 million weights\n" in ended.out


def test_doctor_when_nothing_is_there() -> None:
    """No runtime, no decoder, and a terminal that knows no check marks."""
    program = (
        "import sys\n"
        "for name in ('torch', 'openvino', 'av', 'safetensors', 'tensorrt'): sys.modules[name] = None\n"
        "sys.argv = ['mcdrl-rt', 'doctor']\n"
        "from mcdrl_rt.cli import main\n"
        "main()\n"
    )
    environment = os.environ | {"PATH": "", "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert len(lines) == 12
    assert [line[0] for line in lines] == ["?"] * 12
    assert "PyTorch: needs torch, which is not installed; reinstall mcdrl-rt" in ended.stdout


@pytest.mark.parametrize("command", [(), ("stream",), ("process",), ("build",), ("doctor",)])
def test_help(command: tuple[str, ...], here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = here(*command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "Usage: mcdrl-rt" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out  # nothing is cut off


def test_version(here: Callable[..., Ended]) -> None:
    assert here("--version") == (0, f"mcdrl-rt {__version__}\n", "")


# --- what cannot work ---------------------------------------------------------------------------------------------

STREAM = ("stream", "--input", "v.mp4", "--output", "o.mp4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stream", "--input", "gone.mp4", "--output", "o.mp4"), "no such file: gone.mp4"),
        (("stream", "--input", "folder", "--output", "o.mp4"), "folder holds no video and no pictures"),
        (("stream", "--input", "text.mp4", "--output", "o.mp4"), "cannot open text.mp4: not a video"),
        (("stream", "--input", "empty.mp4", "--output", "o.mp4"), "empty.mp4 is empty (0 bytes)"),
        (("stream", "--input", "phantom:sice=1", "--output", "o.mp4"), "phantom has no option 'sice'"),
        (("stream", "--input", "v.mp4", "--output", "v.mp4"), "the output v.mp4 is the input; choose another name"),
        (("stream", "--input", "v.mp4", "--output", "link.mp4"), "the output link.mp4 is the input"),
        (("stream", "--input", "link.mp4", "--output", "v.mp4"), "the output v.mp4 is the input"),
        (("stream", "--input", "v*.mp4", "--output", "v.mp4"), "the output v.mp4 is the input"),
        (("stream", "--input", ".", "--output", "v.mp4"), "the output v.mp4 is the input"),
        (("stream", "--input", "v.mp4", "--output", "o.gif"), "the name must end in one of .mp4"),
        (("stream", "--input", "v.mp4", "--output", "no/o.mp4"), "does not exist; create it first"),
        (("stream", "--input", "v.mp4", "--output", "text.mp4/o.mp4"), "is not a folder"),
        (("stream", "--input", "v.mp4", "--output", "folder"), "the name must end in one of .mp4"),
        ((*STREAM, "--policy", "fast"), "no policy 'fast'; choose every, latest, pass"),
        ((*STREAM, "--fps", "inf"), "a frame rate are greater than zero, and finite"),
        ((*STREAM, "--capture", "live=1"), "--capture takes KEY=VALUE"),
        (("stream", "--input", "v.mp4", "--output", "x" * 300 + ".mp4"), "file name too long: "),
        (
            (*STREAM, "--capture", "1920x1080"),
            "--capture takes KEY=VALUE, such as video_size=1920x1080, not '1920x1080'",
        ),
        ((*STREAM, "--input", "v.mp4"), "several inputs would go to o.mp4; put {n} or {name} into the output's name"),
        ((*STREAM, "--output", "o.mp4"), "several outputs would go to o.mp4"),
        ((*STREAM, "--metrics", "nowhere:http"), "nowhere:http"),
        ((*STREAM, "--log", "no/such.jsonl"), "no/such.jsonl"),
        ((*STREAM, "--log", "o.mp4"), "the log o.mp4 is an output; choose another name"),
        ((*STREAM, "--log", "./v.mp4"), "the log v.mp4 is the input; choose another name"),
        ((*STREAM, "--output", "-", "--json"), "--json and --output - would both write to the standard output"),
        (("stream", "--input", "-", "--input", "-"), "the standard input can be read by one input only"),
        ((*STREAM, "--output", "masks:text.mp4"), "text.mp4"),
        ((*STREAM, "--codec", "h266"), "unknown codec 'h266'"),
        ((*STREAM, "--engine", "tensorflow"), "no engine 'tensorflow'; choose auto, tensorrt, openvino, torch"),
        ((*STREAM, "--precision", "int3"), "int3"),
        ((*STREAM, "--device", "abacus"), "abacus"),
        ((*STREAM, "--engine", "torch", "--device", "abacus"), "runs on cpu, cuda or cuda:N, not on 'abacus'"),
        ((*STREAM, "--model", "gone.safetensors"), "no checkpoint at gone.safetensors"),
        ((*STREAM, "--model", "foreign.safetensors"), "is a safetensors file, but not a checkpoint of mcdrl-rt"),
        ((*STREAM, "--model", "corrupt.safetensors"), "corrupt.safetensors is not a safetensors file"),
        ((*STREAM, "--model", "cut.safetensors"), "cut.safetensors is not a safetensors file or is cut off"),
        ((*STREAM, "--model", "lone.xml"), "rebuild it: mcdrl-rt build --output lone.xml --model CHECKPOINT"),
        ((*STREAM, "--model", "gone.xml"), "make one: mcdrl-rt build --output gone.xml --model CHECKPOINT"),
        ((*STREAM, "--model", "text.mp4"), "neither a checkpoint (.safetensors) nor an engine (.plan, .pt2, .xml)"),
        (("process", "gone", "--output", "out"), "no such file or folder: gone"),
        (("process", "nothing", "--output", "out"), "no video in nothing, and no pictures"),
        (("process", "*.gif", "--output", "out"), "no file matches *.gif"),
        (("process", "@gone.txt", "--output", "out"), "cannot read the list gone.txt"),
        (("process", "v.mp4", "--output", "out", "--masks", "gif"), "no masks 'gif'; choose ffv1, png, coco, or none"),
        (("process", "v.mp4", "--output", "/proc/self/out"), "cannot make the output folder /proc/self/out"),
        (("process", ".", "--output", "out"), "the output folder out lies in the input ."),
        (("process", "v.mp4", "", "--output", "out"), "an input is an empty name"),
        (("process", "v.mp4", "--output", "text.mp4"), "cannot make the output folder text.mp4"),
        (("process", "v.mp4", "--output", "file:/x"), "no output folder file:/x: an address has two slashes: file://…"),
        (("build", "--output", "o.txt"), "the file of an engine for openvino ends in .xml, not 'o.txt'"),
        (("build", "--output", "no/o.xml"), "cannot write an engine to no: no such file or directory; make it, or"),
        (("build", "--output", ""), ". is a folder; name a file in it, such as engine.xml"),
        (("build", "--model", "foreign.safetensors", "--output", "o.xml"), "not a checkpoint of mcdrl-rt"),
        (("build", "--model", "gone.safetensors", "--output", "o.xml"), "no checkpoint at gone.safetensors"),
        (("build", "--output", "o.xml", "--precision", "int3"), "int3"),
        (("build", "--output", "o.xml", "--batch", "²"), "--batch is a number of frames up to 1024 or a range"),
        (("build", "--output", "o.xml", "--precision", "int8", "--frames", "gone"), "no such file or folder: gone"),
        (("build", "--precision", "int8", "--frames", "."), "name it with --output"),
        (("build", "--runtime", "torch"), "nothing looks for an engine for torch in the cache: name it with --output"),
        (("build", "--output", "o.plan"), "TensorRT is not installed; pip install 'mcdrl-rt[tensorrt]'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_gets_one_clear_line(
    arguments: tuple[str, ...],
    message: str,
    shelf: Path,
    small_checkpoint: Path,
    engine: Path,
    here: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(shelf)
    (shelf / "cut.safetensors").write_bytes(small_checkpoint.read_bytes()[:5000])
    if arguments[0] != "build" and "--model" not in arguments:  # no need to build the embedded model for this
        torch = "torch" in arguments
        arguments = (*arguments, "--model", str(small_checkpoint if torch else engine))
    before = content(shelf)
    ended = here(*arguments)
    assert (ended.code, ended.out) == (1, "")
    lines = [line for line in ended.err.splitlines() if not line.startswith("building the engine of ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ") and message in lines[0].replace("ABACUS", "abacus")
    assert content(shelf) == before


def test_a_file_url_is_the_file(shelf: Path, engine: Path, here: Callable[..., Ended], tmp_path: Path) -> None:
    before = content(shelf)
    url = f"file://{(shelf / 'v.mp4').absolute()}"
    ended = here("stream", "--input", url, "--output", shelf / "v.mp4", "--model", engine)
    assert (ended.code, ended.err) == (1, f"error: the output {shelf / 'v.mp4'} is the input; choose another name\n")
    with_sound(tmp_path / "sound.mp4", shelf / "v.mp4")
    output = tmp_path / "o.mkv"
    assert here("stream", "--input", f"file://{tmp_path}/sound.mp4", "--output", output, "--model", engine).code == 0
    with av.open(output) as container:
        assert len(container.streams.audio) == 1
    assert content(shelf) == before


def test_a_video_without_frames_is_an_error(engine: Path, here: Callable[..., Ended], tmp_path: Path) -> None:
    ended = here("stream", "--input", "phantom:frames=0", "--output", tmp_path / "o.mp4", "--model", engine)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that even root cannot write to")
@pytest.mark.parametrize("command", [("stream", "--input"), ("process", "--output", "results")])
@pytest.mark.parametrize("name", ["text.mp4", "gone.mp4", "no*.mp4"])
def test_programs_are_told_of_an_input_that_does_not_open(
    command: tuple[str, ...], name: str, shelf: Path, engine: Path, here: Callable[..., Ended], tmp_path: Path
) -> None:
    video = shelf / name
    command = tuple(str(tmp_path) if word == "results" else word for word in command)
    ended = here(*command, video, "--model", engine, "--json")
    told = json.loads(ended.out)
    assert ended.code == 1 and told.keys() == {"source", "error"}
    assert Path(told["source"]).name == name and ended.err.startswith(f"error: {told['error']}")


def test_an_output_that_cannot_be_written(shelf: Path, engine: Path, here: Callable[..., Ended]) -> None:
    ended = here("stream", "--input", shelf / "v.mp4", "--output", "/proc/o.mp4", "--model", engine)
    assert (ended.code, ended.err) == (1, "error: cannot write in the folder /proc: no new files are allowed there\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stream", "--input", "v.mp4", "--opacity", "2"), "'--opacity'"),
        (("stream",), "Missing option '--input'"),
        (("process", "v.mp4"), "Missing option '--output'"),
        (("stream", "--input", "v.mp4", "--frobnicate"), "--frobnicate"),
        (("dance",), "dance"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], message: str, here: Callable[..., Ended]) -> None:
    ended = here(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err and "Usage: mcdrl-rt" in ended.err and "Traceback" not in ended.err


# --- being stopped ------------------------------------------------------------------------------------------------


@pytest.fixture
def spawn() -> Iterator[Start]:
    """Start the command in a process of its own that heeds signals, and is gone when the test is."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *arguments: object, stderr: int = subprocess.PIPE, stdout: int | None = None
    ) -> subprocess.Popen[str]:
        command = [*CLI, *map(str, arguments)]
        started.append(subprocess.Popen(command, stderr=stderr, stdout=stdout, text=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def endless(spawn: Start, engine: Path) -> Start:
    """Record a phantom without end; returns once its first frames are in the file."""

    def start(output: Path, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        process = spawn("stream", "--input", PHANTOM, "--output", output, "--model", engine, stderr=stderr)
        deadline = time.monotonic() + 60
        partial = output.parent / f".{output.stem}.partial-{process.pid}{output.suffix}"
        # AVI is written as it goes: frames are there once the file is larger than its header
        while time.monotonic() < deadline and process.poll() is None:
            if partial.exists() and partial.stat().st_size > 20_000:
                break
            time.sleep(0.05)
        return process

    return start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_recording_is_kept(number: signal.Signals, endless: Start, tmp_path: Path) -> None:
    output = tmp_path / "live.avi"
    process = endless(output)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    frames = len(read_pts(output))
    assert frames > 0
    assert err.splitlines()[0] == "stopping; a second Ctrl-C discards the output"
    assert err.splitlines()[1].startswith(f"phantom → {output}: stopped after {frames} frames, ")
    assert [path.name for path in tmp_path.iterdir()] == ["live.avi"]


def test_several_inputs_and_outputs_share_one_engine(
    shelf: Path, engine: Path, here: Callable[..., Ended], tmp_path: Path
) -> None:
    video = str(shelf / "v.mp4")
    ended = here(
        *("stream", "--input", video, "--input", "phantom:size=160x120,frames=5", "--model", engine, "--json"),
        *("--output", tmp_path / "{n}.mkv", "--output", tmp_path / "{n}.jsonl", "--stride", "2", "--no-hud"),
    )
    assert (ended.code, ended.err) == (0, "")
    first, second = (json.loads(line) for line in ended.out.splitlines())
    assert (first["source"], second["source"]) == ("v.mp4", "phantom")
    for number, summary in enumerate((first, second), 1):
        records = [json.loads(line) for line in (tmp_path / f"{number}.jsonl").read_text().splitlines()]
        assert (
            len(read_pts(tmp_path / f"{number}.mkv")) == len(records) == summary["frames_out"] == summary["frames_in"]
        )
    assert second["frames_out"] == 5


def test_a_recording_can_be_played_as_if_it_were_live(shelf: Path, engine: Path, here: Callable[..., Ended]) -> None:
    ended = here("stream", "--input", shelf / "v.mp4", "--live", "--model", engine, "--json")
    assert ended.code == 0
    summary = json.loads(ended.out)
    assert summary["policy"] == "pass"
    assert summary["realtime"] < 1.3
    assert summary["frames_in"] == summary["frames_out"] + summary["frames_dropped"]


def test_live_from_a_recording_its_sound_comes_along(
    shelf: Path, engine: Path, here: Callable[..., Ended], tmp_path: Path
) -> None:
    video = tmp_path / "sound.mkv"
    with_sound(video, shelf / "v.mp4")
    ended = here("stream", "--input", video, "--live", "--model", engine, "--output", tmp_path / "o.mp4")
    assert ended.code == 0, ended.err
    with av.open(tmp_path / "o.mp4") as container:
        (sound,) = container.streams.audio
        packets = [packet for packet in container.demux(sound) if packet.size]
    with av.open(video) as container:
        expected = sum(packet.size > 0 for packet in container.demux(audio=0))
    assert abs(len(packets) - expected) <= 2
    assert packets[0].pts is not None and 0 <= packets[0].pts * packets[0].time_base < 0.1


def test_a_live_pipe_is_read_as_it_comes(engine: Path, shelf: Path, tmp_path: Path) -> None:
    """Half of it comes at once, the rest when the signal is given up: no frame is late, and none counted twice."""
    records = tmp_path / "o.jsonl"
    command = [*CLI, "stream", "--input", "-", "--policy", "pass", "--model", str(engine), "--json"]
    pipe = subprocess.PIPE
    process = subprocess.Popen([*command, "--output", str(records)], stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    data = (shelf / "long.ts").read_bytes()
    process.stdin.write(data[: len(data) // 2])
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not (records.exists() and '"signal": false' in records.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    out, err = process.communicate(data[len(data) // 2 :], timeout=60)
    assert process.returncode == 3, err  # the signal was lost meanwhile
    summary = json.loads(out)
    assert summary["source"] == "standard input" and summary["policy"] == "pass"
    assert summary["frames_lost_signal"] > 0 and summary["reconnections"] == 0
    assert "standard input: the signal is lost" in err.decode()


def test_ctrl_c_is_heard_while_the_input_gives_nothing(spawn: Start, engine: Path, shelf: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    output = tmp_path / "o.avi"
    process = spawn("stream", "--input", pipe, "--policy", "every", "--output", output, "--model", engine)
    with pipe.open("wb") as writer:
        writer.write((shelf / "long.ts").read_bytes())
        writer.flush()
        partial = tmp_path / f".o.partial-{process.pid}.avi"  # written as it goes
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (partial.exists() and partial.stat().st_size > 8000):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT, err
    assert read_pts(output)


def test_a_signal_is_heard_while_it_starts(spawn: Start, small_checkpoint: Path, tmp_path: Path) -> None:
    """Before the first frame: waiting for an input, in which FFmpeg hears nothing, and then loading an engine."""
    os.mkfifo(tmp_path / "pipe")
    waiting = spawn("stream", "--input", tmp_path / "pipe", "--output", tmp_path / "a.mkv")
    with (tmp_path / "pipe").open("wb"):  # it is at it
        time.sleep(0.3)
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(20) == 128 + signal.SIGTERM
    slow = ("--model", small_checkpoint, "--engine", "torch")
    loading = spawn("stream", "--input", "phantom:size=160x128", "--output", tmp_path / "b.mp4", *slow)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".b.partial*")):
        assert time.monotonic() < deadline and loading.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    loading.send_signal(signal.SIGINT)
    assert loading.communicate(timeout=20)[1] == "stopped\n"
    assert loading.returncode == 128 + signal.SIGINT
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_ctrl_c_while_python_imports_is_no_traceback() -> None:
    """At a moment that is sure to be one: when typer is being imported."""
    at_typer = "import os, signal, sys\nclass At:\n def find_spec(self, name, *_):\n"
    at_typer += "  if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\nsys.meta_path.insert(0, At())\n"
    program = f"{at_typer}from mcdrl_rt.cli import main\nmain()"
    ended = subprocess.run([sys.executable, "-c", program, "doctor"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_a_second_ctrl_c_ends_it_even_while_nobody_reads_its_output(spawn: Start, engine: Path) -> None:
    process = spawn("stream", "--input", PHANTOM, "--output", "-", "--model", engine, stdout=subprocess.PIPE)
    assert process.stdout is not None
    before, held, deadline = b"", bytearray(4), time.monotonic() + 60
    while before != held or not any(held):  # until the pipe is full
        assert time.monotonic() < deadline and process.poll() is None
        before = bytes(held)
        time.sleep(0.5)
        fcntl.ioctl(process.stdout.fileno(), termios.FIONREAD, held)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None  # the last frames are waited for
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGINT
    assert process.stderr is not None
    assert process.stderr.read().splitlines() == ["stopping; a second Ctrl-C discards the output", "stopped"]


def test_a_terminal_that_is_held_stops_neither_the_stream_nor_its_end(engine: Path, tmp_path: Path) -> None:
    """As by Ctrl-S, or a connection that hangs: nobody takes the progress bar, or what is said of the end."""
    ours, theirs = pty.openpty()
    output = tmp_path / "o.jsonl"
    arguments = ["stream", "--input", PHANTOM, "--output", str(output), "--model", str(engine)]
    process = subprocess.Popen([*CLI, *arguments], stdin=subprocess.DEVNULL, stderr=theirs, start_new_session=True)
    os.close(theirs)
    deadline = time.monotonic() + 60
    for size in (1, 150_000):  # it has begun; it goes on
        while not output.exists() or output.stat().st_size < size:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        os.write(ours, b"\x13")  # Ctrl-S
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGINT
    os.close(ours)


def test_what_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    program = """
import ctypes, threading
from mcdrl_rt.console import leave
threading.Thread(target=ctypes.CDLL(None).pause, daemon=True).start()
print("said", end="")
leave(3)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "said", "")


def test_a_fault_of_ours_is_one_line_and_the_other_streams_are_told_of(
    engine: Path, here: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Presenter.segment

    def fails(presenter: Presenter, frame: Frame) -> Segmented:
        if presenter._name == "phantom (1)" and frame.index == 3:
            raise ZeroDivisionError("on purpose")
        return counted(presenter, frame)

    monkeypatch.setattr(Presenter, "segment", fails)
    source, log = f"{PHANTOM},frames=9", tmp_path / "log.jsonl"
    ended = here("stream", "--input", source, "--input", source, "--model", engine, "--log", log)
    assert ended.code == 1
    assert ended.err.splitlines()[0] == (
        "error: phantom (1): a fault of mcdrl-rt itself, please report it: ZeroDivisionError: on purpose"
    )
    assert ended.err.splitlines()[1].startswith("phantom (2) → null: 9 frames")
    assert "Traceback" in log.read_text() and "Traceback" not in ended.err


def test_a_camera_that_is_away_leaves_the_others(
    shelf: Path, engine: Path, here: Callable[..., Ended], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    camera, video = "rtsp://surgeon:secret@127.0.0.1:9/live", shelf / "v.mp4"
    output = tmp_path / "{name}.mp4"
    ended = here("stream", "--input", camera, "--input", video, "--output", output, "--model", engine, "--json")
    assert ended.code == 1
    assert caplog.messages[0].startswith("cannot open rtsp://…@127.0.0.1:9/live: connection refused")
    away, there = map(json.loads, ended.out.splitlines())
    assert away["source"].startswith("rtsp://…@127.0.0.1:9") and away["error"] == caplog.messages[0]
    assert there["frames_out"] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_a_log_tells_how_it_began_and_ended(
    shelf: Path, engine: Path, here: Callable[..., Ended], tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    videos = ("--input", shelf / "v.mp4", "--input", shelf / "link.mp4", "--input", shelf / "v.mp4")
    ended = here("stream", *videos, "--output", tmp_path / "{n}.jsonl", "--log", log, "--model", engine)
    assert ended.code == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    names = ["v.mp4 (1)", "link.mp4", "v.mp4 (3)"]
    assert sorted(line["message"] for line in lines) == sorted(f"{n}: {w}" for n in names for w in ("started", "ended"))
    assert [line["summary"]["frames_out"] for line in lines if "summary" in line] == [12, 12, 12]
    for number, name in enumerate(names, 1):
        records = [json.loads(line) for line in (tmp_path / f"{number}.jsonl").read_text().splitlines()]
        assert {record["stream"] for record in records} == {name}


def test_a_second_request_discards_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    quits = list[int]()
    monkeypatch.setattr(console, "quit_now", lambda number, _: quits.append(number))
    stop = console.Stop()
    stop(signal.SIGINT, None)
    stop(signal.SIGTERM, None)  # what signals a process and its group says it twice: still the same request
    assert stop.is_set() and stop.number == signal.SIGINT
    stop._since -= 2 * stop.ECHO_S
    for number in (signal.SIGTERM, signal.SIGHUP):  # the terminal is closed, the machine shuts down
        stop(number, None)
    assert not quits
    stop(signal.SIGINT, None)
    assert quits == [signal.SIGINT]


def test_no_password_is_printed_for_programs(here: Callable[..., Ended]) -> None:
    inputs = [("--input", f"rtsp://admin:secret@10.0.0.{i}/live") for i in range(2)]
    ended = here("stream", *itertools.chain.from_iterable(inputs), "--output", "one.mp4", "--json")
    assert ended.code == 1 and "secret" not in ended.out + ended.err
    assert json.loads(ended.out)["source"] == "rtsp://…@10.0.0.0/live, rtsp://…@10.0.0.1/live"


def test_one_request_that_comes_twice_keeps_the_recording(endless: Start, tmp_path: Path) -> None:
    process = endless(tmp_path / "live.avi")
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM and "stopped after" in err
    assert len(read_pts(tmp_path / "live.avi")) > 0


def test_a_recording_outlives_its_terminal(endless: Start, tmp_path: Path) -> None:
    """The connection breaks: nobody reads standard error any more, and SIGHUP comes."""
    reader, writer = os.pipe()
    process = endless(tmp_path / "live.avi", stderr=writer)
    os.close(writer)
    os.close(reader)
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 128 + signal.SIGHUP
    assert len(read_pts(tmp_path / "live.avi")) > 0


@pytest.mark.parametrize(
    ("hands", "number"),
    [
        ((), signal.SIGTERM),
        (("--workers", "2"), signal.SIGKILL),
        pytest.param(("--workers", "2"), signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(("--ray", "local"), signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_process_keeps_only_whole_videos_when_stopped(
    hands: tuple[str, ...], number: signal.Signals, spawn: Start, engine: Path, tmp_path: Path
) -> None:
    """And whoever works for it ends, too."""
    write_clip(tmp_path / "long.mp4", pts=range(2000), codec_options={"preset": "ultrafast", "g": "25"})
    output = tmp_path / "out"
    command = ("process", tmp_path / "long.mp4", "--output", output, "--model", engine, "--segment", "1")
    process = spawn(*command, *hands)
    done = output / "long.parts" / "00000.frames.parquet"
    while process.poll() is None and not done.exists():
        time.sleep(0.05)
    time.sleep(0.2)  # the next segments take much longer
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    if number == signal.SIGTERM:
        assert (process.returncode, err.splitlines()[-1]) == (128 + number, "stopped")
    assert sorted(path.name for path in output.iterdir()) == [".mcdrl-rt.lock", "long.parts"]
    if not hands:
        assert err == "stopped\n"
        assert not [path.name for path in (output / "long.parts").iterdir() if path.name.startswith(".")]
    deadline = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        pytest.fail("something of it is left")


def test_a_terminal_gets_a_progress_bar(engine: Path, shelf: Path, tmp_path: Path) -> None:
    video = tmp_path / f"{'a_long_name_' * 10}[1].mp4"
    video.write_bytes((shelf / "v.mp4").read_bytes())
    seen = in_a_terminal("stream", "--input", video, "--output", tmp_path / "o.mp4", "--model", engine)
    assert b"12/12" in seen and f"{video.name} → ".encode() in seen


def in_a_terminal(*arguments: object) -> bytes:
    """What the command shows there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*CLI, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stderr=theirs,
        env=os.environ | {"COLUMNS": "80", "TERM": "xterm-256color"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += (chunk := os.read(ours, 4096))
        except OSError:  # how Linux tells the end
            break
        if not chunk:
            break
    os.close(ours)
    assert process.wait(60) == 0
    return seen


def test_an_archive_gets_a_bar_for_all_and_a_list_before(
    engine: Path, shelf: Path, tmp_path: Path, here: Callable[..., Ended]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes((shelf / "v.mp4").read_bytes())
    job = ("process", folder, "--output", out, "--model", engine, "--masks", "coco", "--no-report")
    listed = here(*job, "--dry-run")
    kinds = ("annotated.mp4", "masks.json", "frames.parquet", "summary.json")
    a, b = ([f"{folder}/{name}.mp4 (new)", *(f"  {out}/{name}.{kind}" for kind in kinds)] for name in "ab")
    assert (listed.code, listed.out.splitlines(), listed.err) == (0, [*a, *b], "")
    assert not out.exists()
    assert b"1 of 2" in in_a_terminal(*job)
    again = here(*job, "--dry-run", "--json")
    states = [json.loads(line) for line in again.out.splitlines()]
    assert [one["state"] for one in states] == ["done", "done"]
    assert all(Path(result).is_file() for one in states for result in one["results"])
    gone = here("process", folder, folder / "c.mp4", "--output", out, "--dry-run")
    assert (gone.code, len(gone.out.splitlines())) == (1, 12)
    assert gone.err == f"error: no such file: {folder / 'c.mp4'}\n"
    told = here("process", folder, folder / "c.mp4", "--output", out, "--dry-run", "--json").out.splitlines()
    assert json.loads(told[2]) == {"source": f"{folder / 'c.mp4'}", "error": f"no such file: {folder / 'c.mp4'}"}
    nowhere = here("process", folder, "--output", "", "--dry-run")
    assert (nowhere.code, nowhere.err) == (1, "error: the name of the output folder is empty\n")


# --- what starting costs ------------------------------------------------------------------------------------------


def imported_by(program: str) -> set[str]:
    """Top-level modules a program has imported by its end, however it ends."""
    run = subprocess.run([sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line.split("|") for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("command", ["stream", "process", "build", "doctor"])
def test_help_breaks_lines_where_the_terminal_ends(command: str) -> None:
    wide = os.environ | {"COLUMNS": "1000"}
    told = subprocess.run([*CLI, command, "--help"], capture_output=True, text=True, env=wide)
    lines = [line.strip() for line in told.stdout.partition("╭")[0].splitlines()]
    assert told.returncode == 0 and len(lines) > 3
    assert not [pair for pair in itertools.pairwise(lines) if all(pair)]  # a paragraph is one line


def test_importing_and_helping_are_light() -> None:
    heavy = {"torch", "openvino", "cv2", "av", "open_clip", "timm", "onnx", "numpy"}
    assert imported_by("import mcdrl_rt.cli") & (heavy | {"typer", "rich"}) == set()
    helping = "import sys; sys.argv = ['mcdrl-rt', '--help']; from mcdrl_rt.cli import main; main()"
    assert "rich" in imported_by(helping)
    assert imported_by(helping) & heavy <= {"numpy"}


def test_streaming_with_a_ready_engine_needs_no_training_stack(engine: Path, small_checkpoint: Path) -> None:
    uri = "phantom:size=160x128,frames=2"
    stream = f"import sys; sys.argv = ['mcdrl-rt', 'stream', '--input', '{uri}', '--model', '{engine}']; "
    imported = imported_by(stream + "from mcdrl_rt.cli import main; main()")
    assert {"openvino", "cv2", "av"} <= imported
    assert imported & {"torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript", "safetensors"} == set()
