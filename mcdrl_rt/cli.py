"""``mcdrl-rt``: the composition root. Every command is a thin line from its options to the library.

Imports of the heavy parts are inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from mcdrl_rt.errors import EngineError, McdrlError, SinkError, SourceError
from mcdrl_rt.version import __version__

if TYPE_CHECKING:
    from mcdrl_rt.segmenter import AnySegmenter
    from mcdrl_rt.stream.telemetry import Summary
    from mcdrl_rt.video.source import Source

app = typer.Typer(
    help="Real-time lesion segmentation for endoscopy video. Research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Stderr(Console):
    """Standard error; that nobody reads it any more is no reason to lose a recording."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


_err = _Stderr(stderr=True)
FLAWED = 3  # exit status: the output is there, with a flaw the warning names: the input was cut off, say

_INPUT = "A file, a URL, /dev/video0, or phantom (its options: site, size=WxH, frames, seed; phantom:frames=90,seed=3)."
_OUTPUT = "A file (.mp4 .m4v .mov .mkv .avi .webm), or null."

Model = Annotated[
    Path | None,
    typer.Option(help="Checkpoint (.safetensors) or built engine (.xml .plan .pt2). Default: the embedded model."),
]
EngineName = Annotated[str, typer.Option(help="auto (the best one here), tensorrt, openvino or torch.")]
Precision = Annotated[str, typer.Option(help="auto (the fastest the device computes in), fp32, fp16, bf16 or int8.")]
Device = Annotated[str, typer.Option(help="auto, or a device of the engine: CPU, GPU (openvino), cpu, cuda (torch).")]
Opacity = Annotated[float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Opacity of the tint over a lesion.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a summary for programs: one JSON line for each video.")]


def main() -> None:
    """Entry point of the console script."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="replace")  # an arrow must not crash an ASCII terminal
    # only errors of the libraries: they warn of much that no user can act on
    logging.basicConfig(level=logging.ERROR, format="%(message)s", handlers=[_LogLines()])
    logging.getLogger("mcdrl_rt").setLevel(logging.INFO)
    _on_signals(_quit)
    try:
        app(prog_name="mcdrl-rt")
    except McdrlError as error:
        _say(str(error), "error:", "bold red")
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mcdrl-rt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def stream(
    input: Annotated[str, typer.Option(help=_INPUT, metavar="SOURCE")],
    output: Annotated[str, typer.Option(help=_OUTPUT, metavar="FILE")] = "null",
    model: Model = None,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
    opacity: Opacity = 0.35,
    as_json: AsJson = False,
) -> None:
    """Segment one video and write it with the lesions drawn on. Ctrl-C ends it and keeps what was written.

    Exit status: 0 all is well; 3 written, with the flaw the warning names (a damaged video, say); 1 an error.
    """
    from mcdrl_rt.stream.pipeline import run
    from mcdrl_rt.video.sink import open_sink
    from mcdrl_rt.video.source import open_source

    _check_not_input(input, output)
    stop = _Stop()
    with open_source(input) as source, _progress(source.name, source.frame_count, not as_json) as advance:
        with open_sink(output, source.format) as sink:
            segmenter = _segmenter(model, engine, precision, device).for_stream()
            _on_signals(stop)
            summary = run(source, segmenter, sink, output=output, opacity=opacity, on_frame=advance, stop=stop)
    if not summary.frames_out and not summary.stopped:
        raise SourceError(f"{source.name} has no frames; nothing was written")
    _report(summary, as_json)
    if summary.stopped:
        raise typer.Exit(128 + stop.number)
    if summary.problem:
        raise typer.Exit(FLAWED)


@app.command()
def process(
    inputs: Annotated[list[Path], typer.Argument(help="Videos, or folders of them.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; made if it is not there.")],
    model: Model = None,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
    opacity: Opacity = 0.35,
    as_json: AsJson = False,
) -> None:
    """Segment recorded procedures: an annotated video and a lossless label video of each.

    A folder's videos keep their places in it. Exit status: 0 all is well; 3 all are written, with the flaws
    the warnings name (a damaged video, say); 1 a video failed.
    """
    from mcdrl_rt import offline

    jobs = offline.plan(inputs, output)
    segmenter = _segmenter(model, engine, precision, device)
    failed = flawed = 0
    with contextlib.ExitStack() as bar:

        def start(job: offline.Job, source: Source) -> Callable[[int], None] | None:
            return bar.enter_context(_progress(job.source.name, source.frame_count, not as_json))

        for outcome in offline.process(jobs, segmenter, opacity=opacity, on_start=start):
            bar.close()
            if outcome.summary is not None:
                _report(dataclasses.replace(outcome.summary, source=str(outcome.job.source)), as_json)
                flawed += bool(outcome.summary.problem)
                continue
            failed += 1
            _say(f"{outcome.error}", "error:", "bold red")
            if as_json:
                _print_json({"source": str(outcome.job.source), "error": outcome.error})
    if failed:
        _say(f"{failed} of {len(jobs)} videos failed")
        raise typer.Exit(1)
    if flawed:
        raise typer.Exit(FLAWED)


@app.command()
def build(
    output: Annotated[
        Path | None,
        typer.Option(help="Engine file: .xml (OpenVINO), .plan (TensorRT), .pt2 (torch), .onnx. Default: the cache."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint. Default: the embedded model.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="openvino, tensorrt, torch or onnx. Default: what --output says, or openvino.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="auto, fp32, fp16, bf16 or int8 (int8: OpenVINO, needs --frames).")
    ] = "auto",
    frames: Annotated[
        Path | None, typer.Option(help="Real pictures or videos, to calibrate int8 with and to check any engine on.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N or N-M", help="Frames at a time; N-M: a TensorRT profile.")] = "1",
    device: Device = "auto",
    route: Annotated[str, typer.Option(help="How a TensorRT plan is made: onnx or torch-tensorrt.")] = "onnx",
) -> None:
    """Compile a checkpoint into an engine for this machine and check it against the reference."""
    from mcdrl_rt.engine.build import build_engine
    from mcdrl_rt.engine.cache import cached_engine
    from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
    from mcdrl_rt.engine.order import Order
    from mcdrl_rt.engine.sidecar import runtime_of

    runtime = runtime or (output and runtime_of(output)) or "openvino"
    order = Order(
        runtime=runtime, precision=precision, device=device, batch=_batch(batch), frames=frames, route=route
    )
    checkpoint = model or DEFAULT_CHECKPOINT
    if output is None and (frames or order.batch != (1, 1) or precision == "int8"):
        raise EngineError("an engine of your own frames, batch or int8 is kept where you say: name it with --output")
    with _stages() as stage:
        if output is None:
            output, sidecar = cached_engine(checkpoint, order, stage)
        else:
            sidecar = build_engine(checkpoint, output, order, stage)
    if not (parity := sidecar.get("parity")):
        _say(f"{output}: ready; nothing here runs it, so it was not checked")
        return
    kind = "synthetic" if order.frames is None else "real"
    _say(
        f"{output}: ready, {sidecar['precision']}, {sidecar['latency_ms']:.1f} ms a frame; against float32 torch "
        f"{parity['label_flips']:.3%} of labels differ, mask IoU {parity['mask_iou']:.4f}, over {parity['frames']} "
        f"{kind} frames"
    )


def _batch(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least) <= 1024):
        raise EngineError(f"--batch is a number of frames up to 1024 or a range of them, 4 or 1-8, not {text!r}")
    return int(least), int(most or least)


@contextlib.contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """What is being done, and for how long, on a terminal."""
    if not _err.is_terminal:
        yield lambda _: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda text: progress.update(task, description=text)


@app.command()
def doctor() -> None:
    """Say what this machine has: devices, runtimes, codecs, the embedded model; and what to install for more."""
    from mcdrl_rt.doctor import examine

    marks = {True: ("✓", "green"), False: ("–", "yellow")}
    console = Console()
    for finding in examine():
        line = Text.assemble(marks[finding.present], f" {finding.what}: {finding.detail}")
        console.print(line, soft_wrap=True)


def _segmenter(model: Path | None, engine: str, precision: str, device: str) -> AnySegmenter:
    from mcdrl_rt.segmenter import Segmenter

    return Segmenter.load(model, engine=engine, precision=precision, device=device)


@contextlib.contextmanager
def _progress(name: str, total: int | None, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on standard error; the count of frames alone where the end is not known."""
    if not shown or not _err.is_terminal:
        yield None
        return
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=_err) as progress:
        short = name if len(name) <= 30 else f"{name[:14]}…{name[-15:]}"  # a longer one would leave no room for the bar
        task = progress.add_task(escape(short), total=total)
        yield lambda frames: progress.update(task, completed=frames)


def _report(summary: Summary, as_json: bool) -> None:
    if as_json:
        _print_json(dataclasses.asdict(summary))
        return
    segment = summary.stages.get("segment", {})
    stopped = "stopped after " if summary.stopped else ""
    dropped = f", {summary.frames_dropped} dropped" if summary.frames_dropped else ""
    _say(
        f"{summary.source} → {summary.output}: {stopped}{summary.frames_out} frames{dropped}, "
        f"{summary.frames_with_lesion} with a lesion"
    )
    _say(
        f"  {summary.seconds:.1f} s, {summary.fps:.0f} fps, {summary.realtime:.1f}× real time; {summary.engine}, "
        f"{segment.get('p50_ms', 0):.1f} ms a frame (p95 {segment.get('p95_ms', 0):.1f})"
    )
    if summary.problem:
        _say(summary.problem, "warning:", "yellow")


def _print_json(line: dict[str, Any]) -> None:
    """A line for programs, on standard output; a reader that is gone does not end the work."""
    try:
        print(json.dumps(line), flush=True)
    except OSError as error:
        _say(f"nobody reads standard output any more: {error.strerror}", "warning:", "yellow")
        sys.stdout = open(os.devnull, "w")


def _check_not_input(input: str, output: str) -> None:
    """Refuse to replace the video being read, by whatever names it goes."""
    read, written = Path(input.removeprefix("file://")), Path(output)
    if output != "null" and written.exists() and read.exists() and written.samefile(read):
        raise SinkError(f"the output {output} is the input; choose another name")


def _say(text: str, label: str = "", style: str = "") -> None:
    """A line for people, on standard error; never broken, and no bracket in it is taken for a colour."""
    with contextlib.suppress(OSError):  # the terminal is gone
        _err.print(Text.assemble((label, style), " " if label else "", text), soft_wrap=True)


class _LogLines(logging.Handler):
    """Log records as plain lines, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(self.format(record))


def _on_signals(handle: Callable[[int, Any], None]) -> None:
    """Answer Ctrl-C, a request to end, and the loss of the terminal; not what ``nohup`` and the like hold off."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows lacks the last
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)


def _quit(number: int, _: object) -> NoReturn:
    """Leave, discarding what was begun."""
    _say("stopped")
    raise SystemExit(128 + number)


class _Stop(threading.Event):
    """Set by the first signal, so that a stream ends and its output is kept; a second one quits.

    A closing terminal, and ``timeout``, signal a process and its group at once: that is one request, not two.
    """

    number = 0
    ECHO_S = 0.5  # signals within this time are the same request

    def __call__(self, number: int, _: object) -> None:
        now = time.monotonic()
        if not self.is_set():
            self.number, self._since = number, now
            self.set()
            _say("stopping; a second Ctrl-C discards the output")
        elif now - self._since > self.ECHO_S:
            _quit(number, _)


if __name__ == "__main__":
    main()
