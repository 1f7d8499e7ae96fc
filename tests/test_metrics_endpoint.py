"""Metrics endpoint: what Prometheus' own parser reads from a real scrape, and addresses that cannot be served."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from mcdrl_rt.errors import McdrlError
from mcdrl_rt.stream.histogram import Histogram
from mcdrl_rt.stream.metrics import EDGES_S, Endpoint, StreamStatus, serve


def histogram(*times_ms: float) -> Histogram:
    filled = Histogram()
    for milliseconds in times_ms:
        filled.add(milliseconds)
    return filled


def status(name: str = "theatre 1", **given: object) -> StreamStatus:
    return StreamStatus(name=name, policy="latest", engine="openvino bf16", **given)  # type: ignore[arg-type]


def scrape(endpoint: Endpoint) -> dict[str, list[Sample]]:
    """Samples by name; the parser refuses what Prometheus would."""
    with urllib.request.urlopen(endpoint.url, timeout=10) as answer:
        text = answer.read().decode()
    samples: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


@pytest.fixture
def served() -> Iterator[tuple[Endpoint, list[StreamStatus]]]:
    streams = [
        status(
            frames_in=100,
            frames_out=90,
            frames_dropped=10,
            frames_without_overlay=7,
            frames_reused=5,
            reconnections=2,
            engine_restarts=1,
            signal=False,
            outputs={"out.mp4": True, "window": False},
            age=histogram(40, 80, 20_000),
            stages={"decode": histogram(2, 3), "segment": histogram(35, 36, 900)},
        ),
        status('quoted "name" \\ line\nbreak'),
    ]
    with serve("0", lambda: streams) as endpoint:
        yield endpoint, streams


def value(samples: list[Sample], **labels: str) -> float:
    (found,) = (s.value for s in samples if labels.items() <= s.labels.items())
    return found


def test_counters_and_signal(served: tuple[Endpoint, list[StreamStatus]]) -> None:
    samples = scrape(served[0])
    expected = {
        "mcdrl_frames_in_total": 100,
        "mcdrl_frames_out_total": 90,
        "mcdrl_frames_dropped_total": 10,
        "mcdrl_frames_without_overlay_total": 7,
        "mcdrl_frames_reused_total": 5,
        "mcdrl_reconnections_total": 2,
        "mcdrl_engine_restarts_total": 1,
        "mcdrl_signal": 0,
    }
    assert {name: value(samples[name], stream="theatre 1") for name in expected} == expected
    assert [value(samples["mcdrl_output_up"], output=name) for name in ("out.mp4", "window")] == [1, 0]
    other = served[1][1].name
    assert value(samples["mcdrl_signal"], stream=other) == 1
    assert value(samples["mcdrl_frames_in_total"], stream=other) == 0
    assert value(samples["mcdrl_engine_info"], stream=other, engine="openvino bf16", policy="latest") == 1


def test_histograms_are_in_seconds_and_complete(served: tuple[Endpoint, list[StreamStatus]]) -> None:
    samples = scrape(served[0])
    buckets = [s for s in samples["mcdrl_stage_seconds_bucket"] if s.labels["stage"] == "segment"]
    assert [s.labels["le"] for s in buckets] == [*map(str, EDGES_S), "+Inf"]
    assert [s.value for s in buckets] == sorted(s.value for s in buckets)
    of = {"stream": "theatre 1", "stage": "segment"}
    assert [value(buckets, le=edge) for edge in ("0.03", "0.04", "0.5", "1.0", "+Inf")] == [0, 2, 2, 3, 3]
    assert value(samples["mcdrl_stage_seconds_sum"], **of) == pytest.approx(0.971)
    assert value(samples["mcdrl_stage_seconds_count"], **of) == 3
    ages = samples["mcdrl_mask_age_seconds_bucket"]
    assert value(ages, stream="theatre 1", le="10.0") == 2
    assert value(ages, stream="theatre 1", le="+Inf") == 3
    assert value(ages, stream=served[1][1].name, le="+Inf") == 0  # nothing yet is no error


def test_each_scrape_asks_again(served: tuple[Endpoint, list[StreamStatus]]) -> None:
    endpoint, streams = served
    scrape(endpoint)
    streams[:] = [status(frames_in=101)]
    assert [s.value for s in scrape(endpoint)["mcdrl_frames_in_total"]] == [101]


def test_two_endpoints_know_nothing_of_each_other() -> None:
    with serve("0", lambda: [status("a")]) as one, serve("127.0.0.1:0", lambda: [status("b")]) as two:
        names = [{s.labels["stream"] for s in scrape(e)["mcdrl_signal"]} for e in (one, two)]
    assert names == [{"a"}, {"b"}]


def test_closing_frees_the_port_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with serve("0", lambda: [status()]) as endpoint:
        port = endpoint.url.split(":")[2].split("/")[0]
        scrape(endpoint)
    endpoint.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(endpoint.url, timeout=10)
    with serve(port, lambda: [status()]) as again:
        assert scrape(again)["mcdrl_signal"]
    left = set(threading.enumerate()) - before
    for thread in left:  # answering threads are on their way out
        thread.join(10)
    assert not any(thread.is_alive() for thread in left)


@pytest.mark.parametrize(("address", "host"), [("0", "127.0.0.1"), (":0", "0.0.0.0"), ("localhost:0", "localhost")])
def test_who_can_reach_it(address: str, host: str) -> None:
    with serve(address, lambda: []) as endpoint:
        assert endpoint.url.startswith(f"http://{host}:")
        assert scrape(endpoint) == {}


def test_internet_protocol_6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6 on the loopback interface")
    with serve("[::1]:0", lambda: [status()]) as endpoint:
        assert endpoint.url.startswith("http://[::1]:")
        assert scrape(endpoint)["mcdrl_signal"]


@pytest.mark.parametrize("address", ["", "port", ":", "127.0.0.1", "70000", "http://localhost:9090", "::1:9", "-1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(McdrlError) as caught:
        serve(address, lambda: [])
    assert str(caught.value) == (
        f"{address!r} is no address to serve metrics at; write 9090, :9090 or 127.0.0.1:9090"
    )


def test_a_port_that_is_taken() -> None:
    with serve("0", lambda: []) as first, pytest.raises(McdrlError) as caught:
        port = first.url.split(":")[2].split("/")[0]
        serve(port, lambda: [])
    assert str(caught.value) == (
        f"cannot serve metrics at {port}: address already in use; choose another address or port"
    )


@pytest.mark.parametrize(
    ("address", "reason"),
    [("nowhere.invalid:9090", "no such host"), ("192.0.2.1:9090", "cannot assign requested address")],
)
def test_a_host_that_is_not_here(address: str, reason: str) -> None:
    with pytest.raises(McdrlError, match=f"^cannot serve metrics at {address}: {reason}; [^\n]*$"):
        serve(address, lambda: [])
