"""``mcdrl-rt``: the composition root. Every command is a thin line from its options to the library.

Imports of the heavy parts are inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from mcdrl_rt import __version__
from mcdrl_rt.errors import McdrlError, SinkError

if TYPE_CHECKING:
    from mcdrl_rt.segmenter import Segmenter
    from mcdrl_rt.stream.telemetry import Summary

app = typer.Typer(
    help="Real-time lesion segmentation for endoscopy video. Research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_err = Console(stderr=True)

Model = Annotated[
    Path | None,
    typer.Option(help="Checkpoint (.safetensors) or built engine (.xml). Default: the embedded model."),
]
EngineName = Annotated[str, typer.Option(help="auto, openvino or torch.")]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16 (auto: bf16 where the processor computes in it).")]
Device = Annotated[str, typer.Option(help="auto, or a device of the engine: CPU, GPU (openvino), cpu, cuda (torch).")]
Opacity = Annotated[float, typer.Option(min=0.0, max=1.0, help="Opacity of the tint over a lesion.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a machine-readable summary on standard output.")]


def main() -> None:
    """Entry point of the console script."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=_err, show_time=False, show_path=False, show_level=False)],
    )
    logging.getLogger("mcdrl_rt").setLevel(logging.INFO)
    try:
        app()
    except McdrlError as error:
        _err.print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        _err.print("stopped", highlight=False)
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mcdrl-rt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None: ...


@app.command()
def stream(
    input: Annotated[str, typer.Option(help="File, URL, /dev/video0, or phantom[:site=…,size=WxH,frames=N,seed=S].")],
    output: Annotated[str, typer.Option(help="File (.mp4 .m4v .mov .mkv .avi .webm), or null.")] = "null",
    model: Model = None,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
    opacity: Opacity = 0.35,
    as_json: AsJson = False,
) -> None:
    """Segment one video and write it with the lesions drawn on."""
    from mcdrl_rt.stream.pipeline import run
    from mcdrl_rt.video.sink import open_sink
    from mcdrl_rt.video.source import open_source

    if output != "null" and Path(output).exists() and Path(input).exists() and Path(output).samefile(input):
        raise SinkError(f"the output {output} is the input; choose another name")
    with open_source(input) as source:
        opened = open_sink(
            output,
            size=source.size,
            time_base=source.time_base,
            rate=source.rate,
            color=source.color,
            from_zero=source.live,
        )
        with opened as sink:
            segmenter = _segmenter(model, engine, precision, device).for_stream()
            with _progress(source.name, source.frame_count, not as_json) as advance:
                summary = run(source, segmenter, sink, output=output, opacity=opacity, on_frame=advance)
    _report(summary, as_json)


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
    """Segment recorded procedures: an annotated video and a lossless label video of each."""
    from mcdrl_rt import offline

    jobs = offline.plan(inputs, output)
    segmenter = _segmenter(model, engine, precision, device)
    with contextlib.ExitStack() as bars:

        def start(job: offline.Job, source: Any) -> Callable[[int], None] | None:
            bars.pop_all().close()  # the previous file's bar ends where this one's begins
            return bars.enter_context(_progress(job.source.name, source.frame_count, not as_json))

        outcomes = offline.process(jobs, segmenter, opacity=opacity, on_start=start)
    for outcome in outcomes:
        if outcome.summary is not None:
            _report(outcome.summary, as_json)
    failed = [outcome for outcome in outcomes if outcome.error]
    if as_json:
        print(json.dumps({"failed": {str(o.job.source): o.error for o in failed}}))
    if failed:
        lines = "; ".join(f"{outcome.error}" for outcome in failed)
        raise McdrlError(f"{len(failed)} of {len(outcomes)} inputs failed: {lines}")


@app.command()
def build(
    output: Annotated[Path | None, typer.Option(help="Engine file (.xml). Default: this user's engine cache.")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint. Default: the embedded model.")] = None,
    precision: Precision = "auto",
) -> None:
    """Compile a checkpoint into an OpenVINO engine for this machine and check it against the reference."""
    from mcdrl_rt.engine.build import build_openvino, cached_engine, read_sidecar
    from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT

    checkpoint = model or DEFAULT_CHECKPOINT
    if output is None:
        output = cached_engine(checkpoint)
        parity = read_sidecar(output)["parity"]
    else:
        with _err.status(f"building {output.name} from {checkpoint.name} …"):
            parity = build_openvino(checkpoint, output, precision)["parity"]
    _err.print(
        f"{output}: ready; against float32 torch {parity['label_flips']:.3%} of labels differ, mask IoU "
        f"{parity['mask_iou']:.4f}, over {parity['frames']} synthetic frames",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def doctor() -> None:
    """Say what this machine has: devices, runtimes, codecs, the embedded model; and what to install for more."""
    from mcdrl_rt.doctor import examine

    marks = {True: "[green]✓[/]", False: "[yellow]–[/]"}
    console = Console(soft_wrap=True, highlight=False)
    for finding in examine():
        console.print(f"{marks[finding.present]} {finding.what}: {_plain(finding.detail)}")


def _segmenter(model: Path | None, engine: str, precision: str, device: str) -> Segmenter:
    from mcdrl_rt.segmenter import Segmenter

    return Segmenter.load(model, engine=engine, precision=precision, device=device)


@contextlib.contextmanager
def _progress(name: str, total: int | None, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on standard error; the count of frames alone where the end is not known."""
    if not shown or not _err.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=_err) as progress:
        task = progress.add_task(_plain(name), total=total)
        yield lambda frames: progress.update(task, completed=frames)


def _report(summary: Summary, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(summary)))
        return
    segment = summary.stages.get("segment", {})
    dropped = f", {summary.frames_dropped} dropped" if summary.frames_dropped else ""
    _err.print(
        f"{summary.source} → {summary.output}: {summary.frames_out} frames in {summary.seconds:.1f} s "
        f"({summary.fps:.0f} fps, {summary.realtime:.1f}× real time{dropped}), lesion in {summary.frames_with_lesion}; "
        f"{summary.engine}, {segment.get('p50_ms', 0):.1f} ms a frame (p95 {segment.get('p95_ms', 0):.1f})",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    if summary.problem:
        _err.print(f"[yellow]warning:[/] {_plain(summary.problem)}", highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Text as it is: no square bracket of a file's name is taken for a colour."""
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
