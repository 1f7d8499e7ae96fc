"""The commands of ``mcdrl-rt``: the composition root. Every command is a thin line from its options to the library.

Imports of the heavy parts are inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from mcdrl_rt.console import (
    LogLines,
    Stop,
    at_quit,
    attended,
    failures,
    leave,
    on_signals,
    print_failure,
    say,
    steps,
)
from mcdrl_rt.errors import EngineError, McdrlError, SinkError, SourceError
from mcdrl_rt.progress import Bars, conclude, follow, list_results, progress_bar
from mcdrl_rt.version import __version__

if TYPE_CHECKING:
    from mcdrl_rt.offline import Job
    from mcdrl_rt.segmenter import AnySegmenter
    from mcdrl_rt.stream.policy import Policy
    from mcdrl_rt.stream.supervisor import Supervisor
    from mcdrl_rt.video.sink import Sink
    from mcdrl_rt.video.source import Source

app = typer.Typer(
    help="Real-time lesion segmentation for endoscopy video. Research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


FLAWED = 3  # exit status: the output is there, with a flaw the warning names: the input was cut off, say

_INPUT = (
    "A file, a folder, 'case/*.mp4', frame%04d.png, a URL, /dev/video0, screen, - (standard input), or phantom (its "
    "options: site, size, frames, seed, fps: phantom:frames=90). Several share one engine."
)
_OUTPUT = (
    "A file (.mp4 .m4v .mov .mkv .avi .webm), rtsp:// rtmp:// rtmps:// srt:// udp://, window, masks:FOLDER, .jsonl or "
    "- (a line a frame), a v4l2loopback /dev/video9, or null. Several are written at once; {n}, {name}: of the input."
)

Model = Annotated[
    Path | None,
    typer.Option(help="Checkpoint (.safetensors) or built engine (.xml .plan .pt2). Default: the embedded model."),
]
EngineName = Annotated[str, typer.Option(help="auto (the best one here), tensorrt, openvino or torch.")]
Precision = Annotated[str, typer.Option(help="auto (the fastest the device computes in), fp32, fp16, bf16 or int8.")]
Device = Annotated[str, typer.Option(help="auto, or a device of the engine: CPU, GPU (openvino), cpu, cuda (torch).")]
Opacity = Annotated[float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Opacity of the tint over a lesion.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a summary for programs: one JSON line for each video.")]


def run() -> None:
    """Do what the command line says, and end the process."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="replace")  # an arrow must not crash an ASCII terminal
    # only errors of the libraries: they warn of much that no user can act on
    logging.basicConfig(level=logging.ERROR, format="%(message)s", handlers=[LogLines()])
    logging.getLogger("mcdrl_rt").setLevel(logging.INFO)
    leave(attended(_command))


def _command() -> object:
    """The command that was asked for; its exit status."""
    for command in app.registered_commands:  # Typer would break its help where the docstring is broken
        paragraphs = inspect.cleandoc(command.callback.__doc__ or "").split("\n\n") if command.callback else []
        command.help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
    try:
        app(prog_name="mcdrl-rt")
    except McdrlError as error:
        say(str(error), "error:", "bold red")
    except OSError as error:  # a folder that is closed to this user, a name that is too long
        place = f": {error.filename}" if error.filename else ""
        say(f"{(error.strerror or str(error)).lower()}{place}", "error:", "bold red")
    except SystemExit as end:
        return end.code
    return 1


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
    input: Annotated[list[str], typer.Option(help=_INPUT, metavar="SOURCE")],
    output: Annotated[list[str], typer.Option(help=_OUTPUT, metavar="SINK")] = ["null"],  # noqa: B006 (typer's way)
    model: Model = None,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
    policy: Annotated[
        str,
        typer.Option(help="every (each frame is segmented), pass (each is shown at once), latest; auto: pass if live."),
    ] = "auto",
    live: Annotated[
        bool, typer.Option("--live", help="Play a file at its own pace, as if it came from a camera.")
    ] = False,
    max_mask_age: Annotated[
        float, typer.Option(min=1, metavar="MS", help="No mask found longer ago than this is drawn.")
    ] = 120.0,
    fps: Annotated[float | None, typer.Option(min=0.01, help="Segment at most so many frames a second.")] = None,
    stride: Annotated[int, typer.Option(min=1, help="Segment one frame in so many.")] = 1,
    skip_static: Annotated[
        bool, typer.Option("--skip-static", help="A picture that stands still keeps its mask.")
    ] = False,
    steady: Annotated[
        bool, typer.Option("--steady", help="Average masks along the motion: less flicker, a frame of lag.")
    ] = False,
    opacity: Opacity = 0.35,
    no_hud: Annotated[bool, typer.Option("--no-hud", help="Do not write the line at the bottom edge.")] = False,
    codec: Annotated[
        str | None, typer.Option(help="libx264, libvpx-vp9, mpeg4, ffv1, or auto: a hardware encoder where one works.")
    ] = None,
    capture: Annotated[
        list[str],
        typer.Option(metavar="KEY=VALUE", help="FFmpeg's option, video_size=1280x720; FFmpeg ignores unknown ones."),
    ] = [],  # noqa: B006
    metrics: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Answer Prometheus: 9090 (this machine only), :9090, host:9090."),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Append a line of JSON for every message.")] = None,
    as_json: AsJson = False,
) -> None:
    """Segment a video, or several at once, and pass it on with the lesions drawn in.

    Ctrl-C ends it and keeps all; a second one discards it.

    Exit status: 0 all is well; 3 written, with the flaw the warning names (a damaged video, say); 1 an error, or an
    output was lost; 2 an unknown or missing option; 128 + signal.
    """
    from mcdrl_rt.log import logging_to
    from mcdrl_rt.stream.lane import WINDOW, open_lanes
    from mcdrl_rt.stream.pipeline import Stream, run_together
    from mcdrl_rt.stream.policy import Policy
    from mcdrl_rt.stream.supervisor import Supervisor
    from mcdrl_rt.video.names import plain, redacted
    from mcdrl_rt.video.routing import route

    settings = Policy(
        mode=policy,
        max_mask_age_ms=max_mask_age,
        fps=fps,
        stride=stride,
        skip_static=skip_static,
        steady=steady,
        opacity=opacity,
        hud=not no_hud,
    )
    if as_json and "-" in output:
        raise SinkError("--json and --output - would both write to the standard output; name a file for one of them")
    stop, streams, as_live = Stop(), list[Stream](), live or policy in ("pass", "latest")
    with failures(", ".join(redacted(plain(uri)) for uri in input), as_json):
        routes = route(input, output, log)
    with contextlib.ExitStack() as opened, contextlib.ExitStack() as sinks:
        if log is not None:
            opened.enter_context(logging_to(log))
        options, missing = _options_of(capture), functools.partial(print_failure, as_json=as_json)
        lanes = open_lanes(input, routes, opened, sinks, live=as_live, options=options, codec=codec, on_missing=missing)
        load = functools.partial(_segmenter, model, engine, precision, device)
        supervisor = opened.enter_context(Supervisor(load(), load))
        for lane in lanes:
            if WINDOW in lane.outputs:
                lane.sinks[WINDOW] = sinks.enter_context(_window(lane.source, supervisor, settings, stop))
            bar = progress_bar(lane.name, lane.source.frame_count, len(input) == 1 and not as_json)
            on_frame, seat = opened.enter_context(bar), supervisor.seat()
            streams.append(Stream(lane.source, seat, lane.sinks, settings, lane.name, on_frame=on_frame, stop=stop))
        if metrics is not None:
            from mcdrl_rt.stream.metrics import serve

            endpoint = opened.enter_context(serve(metrics, lambda: [stream.status() for stream in streams]))
            say(f"metrics at {endpoint.url}")
        on_signals(stop)
        sinks.pop_all()  # the streams close them
        results = run_together(streams)
    failed, flawed = conclude(streams, results, as_json)
    if failed or len(streams) < len(input):
        raise typer.Exit(1)
    if stop.number or flawed:
        raise typer.Exit(128 + stop.number if stop.number else FLAWED)


@app.command()
def process(
    inputs: Annotated[
        list[str], typer.Argument(help="Videos, pictures, folders of them, 'case/*.mp4', @FILE: a list, one a line.")
    ],
    output: Annotated[str, typer.Option(help="Folder for the results, made if need be; or s3:// and the like.")],
    model: Model = None,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
    masks: Annotated[
        list[str], typer.Option(metavar="FORM", help="ffv1 (lossless video), png, coco or none; several if repeated.")
    ] = ["ffv1"],  # noqa: B006 (typer's way)
    no_annotated: Annotated[bool, typer.Option("--no-annotated", help="Leave the annotated video out.")] = False,
    no_table: Annotated[bool, typer.Option("--no-table", help="Leave frames.parquet out, and the report.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Leave the report out.")] = False,
    segment: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", help="Length of a segment: what a kill costs; results depend on it."),
    ] = 60.0,
    opacity: Opacity = 0.35,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Blank text and rooms it finds, drop sound, hash names. Look at it.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that work at once. Default: one for every four cores.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Work on a Ray cluster: HOST:PORT, auto or local.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be written.")] = False,
    as_json: AsJson = False,
) -> None:
    """Segment recorded procedures: an annotated video, masks, a table of frames and a report of each.

    A folder's videos keep their places in it. Whatever stops the command: started again, it goes on where it was, with
    the same results. Exit status: 0 all is well; 3 all are written, with the flaws the warnings name (a damaged video,
    say); 1 a procedure failed; 2 an unknown or missing option; 128 + signal.
    """
    from mcdrl_rt import offline
    from mcdrl_rt.video.names import plain, redacted, slash_missing

    forms, table = () if masks == ["none"] else tuple(masks), not no_table
    settings = offline.Settings(
        annotated=not no_annotated,
        masks=forms,
        table=table,
        report=not no_report,
        segment_s=segment,
        opacity=opacity,
        private=deidentify,
    )
    with failures(", ".join(map(redacted, inputs)), as_json):
        if not output:
            raise SinkError("the name of the output folder is empty")
        if hint := slash_missing(output):
            raise SinkError(f"no output folder {output}: {hint}")
        if ray is not None and workers is not None:
            raise SinkError("--workers are this machine's; with --ray, the cluster decides how many there are")
        store = offline.Store(output) if offline.is_remote(output) else None
        folder = Path(plain(output)) if store is None else store.folder
        jobs = offline.plan(inputs, folder, offline.pseudonym if deidentify else None, store)
    if dry_run:
        if not all([list_results(job, settings, store, as_json) for job in jobs]):
            raise typer.Exit(1)
        return
    load = offline.Loader(model and model.absolute(), engine, precision, device)
    segmenter = load()
    offline.make_folder(folder) if store is None else store.prepare()
    about = offline.engine_facts(segmenter, model)
    if ray is not None:
        from mcdrl_rt.offline.cluster import Cluster

        hands: offline.Hands = Cluster(ray, load, about)
    else:
        count = offline.worker_count(workers, jobs, segment)
        hands = offline.Here(segmenter) if count == 1 else offline.Processes(load, count, segmenter.engine.name)
    at_quit(hands.close)
    with hands, Bars({job.source: job.size for job in jobs}, not as_json) as bars:

        def start(job: Job, frames: int | None) -> Callable[[int], None] | None:
            return bars.start(job.source, frames)

        outcomes = offline.process(
            jobs, folder, segmenter, settings, hands=hands, store=store, engine=about, on_start=start
        )
        failed, flawed = follow(outcomes, bars, as_json)
    if failed or flawed:
        raise typer.Exit(1 if failed else FLAWED)


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
    batch: Annotated[str, typer.Option(metavar="N or N-M", help="Frames at a time; N-M: TensorRT, any in ONNX.")] = "1",
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
    order = Order(runtime=runtime, precision=precision, device=device, batch=_batch(batch), frames=frames, route=route)
    checkpoint = model or DEFAULT_CHECKPOINT
    if output is None and (frames or order.batch != (1, 1) or precision == "int8"):
        raise EngineError("an engine of your own frames, batch or int8 is kept where you say: name it with --output")
    if output is None and runtime in ("torch", "onnx"):
        raise EngineError(f"nothing looks for an engine for {runtime} in the cache: name it with --output")
    with steps() as stage:
        if output is None:
            output, sidecar = cached_engine(checkpoint, order, stage)
        else:
            sidecar = build_engine(checkpoint, output, order, stage)
    if not (parity := sidecar.get("parity")):
        say(f"{output}: ready; not checked: pip install onnxruntime to have it checked")
        return
    doubt = "" if parity["with_lesion"] else ", none with a lesion: check it on some that have, with --frames"
    say(
        f"{output}: ready, {sidecar['precision']}, {sidecar['latency_ms']:.1f} ms a frame; against float32 torch "
        f"{parity['label_flips']:.3%} of labels differ, mask IoU {parity['mask_iou']:.4f}, over {parity['frames']} "
        f"{'synthetic' if order.frames is None else 'real'} frames{doubt}"
    )


def _batch(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least) <= 1024):
        raise EngineError(f"--batch is a number of frames up to 1024 or a range of them, 4 or 1-8, not {text!r}")
    return int(least), int(most or least)


@app.command()
def doctor() -> None:
    """Say what this machine has: devices, runtimes, codecs, the embedded model; and what to install for more."""
    from mcdrl_rt.doctor import examine

    marks = {True: ("✓", "green"), False: ("–", "yellow")}
    console = Console()
    for finding in examine():
        line = Text.assemble(marks[finding.present], f" {finding.what}: {finding.detail}")
        console.print(line, soft_wrap=True)


def _segmenter(model: Path | None, engine: str, precision: str, device: str, skip: int = 0) -> AnySegmenter:
    from mcdrl_rt.segmenter import Segmenter

    return Segmenter.load(model, engine=engine, precision=precision, device=device, skip=skip)


def _options_of(pairs: list[str]) -> dict[str, str]:
    options = dict(pair.partition("=")[::2] for pair in pairs)
    if wrong := [pair for pair in pairs if "=" not in pair or pair.startswith(("=", "live=", "uri="))]:
        raise SourceError(f"--capture takes KEY=VALUE, such as video_size=1920x1080, not {wrong[0]!r}")
    return options


def _window(source: Source, supervisor: Supervisor, policy: Policy, stop: Stop) -> Sink:
    from mcdrl_rt.video.view import View
    from mcdrl_rt.video.window import Window

    title = (lambda: supervisor.title) if policy.hud else None
    view = View(colors=supervisor.spec.colors, title=title, opacity=policy.opacity)
    return Window(source.format, source.name, view, stop.set)
