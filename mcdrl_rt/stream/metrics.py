"""What running streams say of themselves to Prometheus, over HTTP.

Nothing is counted here: at each scrape the streams are asked where they stand.

    >>> with serve(":9090", lambda: [stream.status() for stream in streams]):   # doctest: +SKIP
    ...     run(...)                                                            # doctest: +SKIP
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mcdrl_rt.errors import McdrlError
from mcdrl_rt.stream.histogram import Histogram

# seconds: from a stage of a millisecond to a stall of ten seconds, finest around a frame's time (20 to 50 ms)
EDGES_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_ADDRESS = re.compile(r"(?:(?P<host>\[[^\]]*\]|[^:]*):)?(?P<port>\d{1,5})")
_THIS_MACHINE, _ANYWHERE = "127.0.0.1", "0.0.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """Where a stream stands.

    Args:
        name: of the stream, its own among those served; without passwords, since whoever scrapes reads it.
        policy: how it keeps up with its source.
        engine: what segments.
        frames_in, frames_out: taken from the source and shown.
        frames_dropped: of a live source that outran the model.
        frames_without_overlay: shown, but with no mask that was fresh enough.
        frames_reused: standing pictures whose mask was kept instead of found again.
        reconnections: of the source, after it was lost.
        engine_restarts: after the engine failed or hung.
        signal: False while the source is lost.
        outputs: by name, without passwords; False where nothing that is written arrives.
        age: of the shown masks.
        stages: time that frames spend in each stage, by the stage's name.
    """

    name: str
    policy: str
    engine: str
    frames_in: int = 0
    frames_out: int = 0
    frames_dropped: int = 0
    frames_without_overlay: int = 0
    frames_reused: int = 0
    reconnections: int = 0
    engine_restarts: int = 0
    signal: bool = True
    outputs: Mapping[str, bool] = field(default_factory=dict)
    age: Histogram = field(default_factory=Histogram)
    stages: Mapping[str, Histogram] = field(default_factory=dict)


# field of a StreamStatus -> what Prometheus is told of it
_COUNTERS = {
    "frames_in": "Frames taken from the source.",
    "frames_out": "Frames shown.",
    "frames_dropped": "Frames of a live source that were dropped because it outran the model.",
    "frames_without_overlay": "Frames shown without a mask, since none was fresh enough.",
    "frames_reused": "Standing pictures whose mask was kept instead of found again.",
    "reconnections": "Times the source was lost and found again.",
    "engine_restarts": "Times the engine failed or hung and was started again.",
}


class Endpoint:
    """A server that answers scrapes until it is closed.

    Attributes:
        url: where to scrape.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self._server, self._thread = start_http_server(port, host, registry)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop answering and free the port; safe to call twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(address: str, collect: Callable[[], Iterable[StreamStatus]]) -> Endpoint:
    """Answer scrapes at ``http://address/metrics``, on threads of its own.

    Args:
        address: ``9090`` for this machine only, ``:9090`` for whoever can reach it, or ``host:9090``. Port 0 takes a
            free one.
        collect: called at every scrape, from the server's thread.

    Raises:
        McdrlError: no such address here, or its port is taken.
    """
    host, port = _parse(address)
    registry = CollectorRegistry()
    registry.register(_Streams(collect))
    try:
        return Endpoint(host, port, registry)
    except socket.gaierror:
        raise McdrlError(f"cannot serve metrics at {address}: no such host; use 9090 or :9090") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise McdrlError(f"cannot serve metrics at {address}: {reason}; choose another address or port") from None


def _parse(address: str) -> tuple[str, int]:
    parts = _ADDRESS.fullmatch(address)
    if parts is None or int(parts["port"]) > 65_535:
        raise McdrlError(f"{address!r} is no address to serve metrics at; write 9090, :9090 or 127.0.0.1:9090")
    if (host := parts["host"]) is None:
        host = _THIS_MACHINE
    return host.strip("[]") or _ANYWHERE, int(parts["port"])


class _Streams(Collector):
    """Makes metrics of the streams, when Prometheus asks."""

    def __init__(self, collect: Callable[[], Iterable[StreamStatus]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        streams = list(self._collect())
        yield _info(streams)
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"mcdrl_{name}", text, labels=["stream"])
            for stream in streams:
                counter.add_metric([stream.name], getattr(stream, name))
            yield counter
        signal = GaugeMetricFamily("mcdrl_signal", "1 while the source delivers, else 0.", labels=["stream"])
        outputs = GaugeMetricFamily("mcdrl_output_up", "1 while what is written arrives.", labels=["stream", "output"])
        ages = HistogramMetricFamily("mcdrl_mask_age_seconds", "Age of the shown masks.", labels=["stream"])
        stages = HistogramMetricFamily(
            "mcdrl_stage_seconds", "Time that frames spend in each stage.", labels=["stream", "stage"]
        )
        for stream in streams:
            signal.add_metric([stream.name], int(stream.signal))
            for output, up in stream.outputs.items():
                outputs.add_metric([stream.name, output], int(up))
            ages.add_metric([stream.name], **_buckets(stream.age))
            for stage, times in list(stream.stages.items()):  # a stage may begin to count meanwhile
                stages.add_metric([stream.name, stage], **_buckets(times))
        yield from (signal, outputs, ages, stages)


def _info(streams: list[StreamStatus]) -> Metric:
    info = InfoMetricFamily("mcdrl_engine", "What segments each stream, and how it keeps up.", labels=["stream"])
    for stream in streams:
        info.add_metric([stream.name], {"engine": stream.engine, "policy": stream.policy})
    return info


def _buckets(times: Histogram) -> dict[str, Any]:
    """A histogram in Prometheus' terms: seconds, each bucket holding those before it."""
    counts = times.cumulative([edge * 1e3 for edge in (*EDGES_S, math.inf)])
    names = [*(str(edge) for edge in EDGES_S), "+Inf"]
    return {"buckets": list(zip(names, counts, strict=True)), "sum_value": times.total / 1e3}
