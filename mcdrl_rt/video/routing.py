"""Which input goes to which output, what each is called, and that no video is written over.

    >>> route(["a.mp4", "b.mp4"], ["{name}-seen.mp4", "null"])
    [['a-seen.mp4', 'null'], ['b-seen.mp4', 'null']]
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.video.names import MASKS, plain, redacted, scheme
from mcdrl_rt.video.playlist import matching_files

_SHARED = ("null", "-")  # any number of streams may go there


def route(inputs: list[str], outputs: list[str], log: Path | None = None) -> list[list[str]]:
    """Outputs of each input, as ``open_sink`` takes them.

    Args:
        inputs: as ``open_source`` takes them.
        outputs: the same for all; ``{n}`` in one is the input's number, from 1, ``{name}`` the input's own name.
        log: a file that is written, too.

    Raises:
        SinkError: two would go to one place, or an input would be replaced.
        SourceError: the standard input is named twice.
    """
    if inputs.count("-") > 1:
        raise SourceError("the standard input can be read by one input only; name - once")
    routes = [[_filled(output, number, uri) for output in outputs] for number, uri in enumerate(inputs, 1)]
    written = [name for some in routes for name in some if name not in _SHARED]
    counts = Counter(_place(name) for name in written)
    if twice := [name for name in written if counts[_place(name)] > 1]:  # there is but one window, too
        several = "inputs" if len(inputs) > 1 else "outputs"
        advice = "put {n} or {name} into the output's name" if len(inputs) > 1 else "name it once"
        if twice[0] == "window":
            advice = "there is one for each mcdrl-rt"
        raise SinkError(f"several {several} would go to {redacted(twice[0])}; {advice}")
    if log is not None and _place(str(log)) in counts:
        raise SinkError(f"the log {log} is an output; choose another name")
    read = [file for uri in inputs for file in _files(uri)]
    for what, name in [("output", name) for name in written] + ([("log", str(log))] if log is not None else []):
        if Path(name).exists() and any(Path(name).samefile(file) for file in read):
            raise SinkError(f"the {what} {name} is the input; choose another name")
    return routes


def distinct(names: list[str]) -> list[str]:
    """The names, with the place in the list where two are the same.

    >>> distinct(["left", "right", "left"])
    ['left (1)', 'right', 'left (3)']
    """
    counts = Counter(names)
    told_apart = [name if counts[name] == 1 else f"{name} ({place})" for place, name in enumerate(names, 1)]
    return told_apart if len(set(told_apart)) == len(names) else distinct(told_apart)


def _filled(output: str, number: int, uri: str) -> str:
    kind = uri.partition(":")[0]
    name = kind if kind in ("phantom", "screen") else Path(redacted(uri).partition("?")[0]).stem.strip("-*…@")
    return output.replace("{n}", str(number)).replace("{name}", name or f"input{number}")


def _place(output: str) -> str:
    """The same for two spellings of one file or folder."""
    if scheme(output) or output == "window":
        return output
    folder = output.startswith(MASKS)
    return (MASKS if folder else "") + str(Path(output.removeprefix(MASKS)).resolve())


def _files(uri: str) -> list[Path]:
    file = Path(plain(uri))
    return [file] if file.is_file() else matching_files(uri) or []
