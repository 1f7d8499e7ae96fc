"""Whole pictures out of interlaced ones: one frame out for each frame in, with its own time."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
from av.filter import Graph
from av.video.frame import VideoFrame


class Deinterlacer:
    """FFmpeg's bwdif, set up anew for each run of interlaced frames; all others pass untouched.

    Within a run it holds back one frame, because a picture is put together from its neighbours too: from those and
    from nothing else, so that it is the same wherever reading began.

    Args:
        time_base: of the frames' timestamps, which all must have.
    """

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._graph: Graph | None = None
        self._format: tuple[int, int, str] | None = None

    def __call__(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """The frames that are whole now."""
        if not frame.interlaced_frame:
            yield from self.flush()
            yield frame
            return
        form = (frame.width, frame.height, frame.format.name)
        if form != self._format:
            yield from self.flush()
        if self._graph is None:
            self._graph, self._format = self._set_up(frame), form
        self._graph.vpush(frame)
        yield from self._pull(self._graph)

    def flush(self) -> Iterator[VideoFrame]:
        """The frame held back, if any; the next interlaced frame begins anew."""
        graph, self._graph, self._format = self._graph, None, None
        if graph is not None:
            graph.vpush(None)
            yield from self._pull(graph)

    def _set_up(self, frame: VideoFrame) -> Graph:
        graph = Graph()
        buffer = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=self._time_base
        )
        graph.link_nodes(buffer, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
        graph.configure()
        return graph

    def _pull(self, graph: Graph) -> Iterator[VideoFrame]:
        while True:
            try:
                whole = graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):  # for now, or for good
                return
            # bwdif counts in half units, for those who want a frame for each field
            unit = Fraction(whole.time_base or 1) / self._time_base
            whole.pts, whole.duration = round((whole.pts or 0) * unit), round(whole.duration * unit)
            yield whole
