"""Receive metrics like a StatsD server, and like an OpenTelemetry collector."""

from __future__ import annotations

import gzip
import http.server
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


class StatsD:
    """A StatsD server: a UDP socket that keeps what it receives.

    ``port`` is where clients send to.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.2)
        self.port: int = self._socket.getsockname()[1]

    def lines(self) -> list[str]:
        """Return the lines of an ended client since the last call."""
        received: list[str] = []
        try:
            while True:
                received += self._socket.recv(65536).decode().splitlines()
        except TimeoutError:
            return received

    def close(self) -> None:
        """Stop to receive."""
        self._socket.close()


def counters(lines: list[str], prefix: str) -> Counter[str]:
    """Sum each counter with this prefix, by its remaining name."""
    totals: Counter[str] = Counter()
    for line in lines:
        name, _, rest = line.partition(":")
        value, kind = rest.split("|")[:2]
        if kind == "c" and name.startswith(prefix):
            totals[name.removeprefix(prefix).partition(",")[0]] += int(value)
    return totals


def timers(lines: list[str], prefix: str) -> dict[str, float]:
    """Return the last value of each timer with this prefix."""
    found: dict[str, float] = {}
    for line in lines:
        name, _, rest = line.partition(":")
        value, kind = rest.split("|")[:2]
        if kind == "ms" and name.startswith(prefix):
            found[name.removeprefix(prefix).partition(",")[0]] = float(value)
    return found


class Collector:
    """Keep the last value of each received metric, with labels.

    ``url`` is its address.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.values: dict[str, float] = {}
        self.labels: dict[str, dict[str, str]] = {}

    def take(self, body: bytes) -> None:
        """Keep the metrics of a request (OTLP over HTTP, protobuf)."""
        request = ExportMetricsServiceRequest.FromString(body)
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for number in [*metric.sum.data_points, *metric.gauge.data_points]:
                        value = number.as_int if number.HasField("as_int") else number.as_double
                        self._keep(metric.name, value, number.attributes)
                    for series in metric.exponential_histogram.data_points:
                        self._keep(metric.name, series.sum, series.attributes)

    def _keep(self, name: str, value: float, labels: Iterable[KeyValue]) -> None:
        self.values[name] = value
        self.labels[name] = {pair.key: pair.value.string_value for pair in labels}


@contextmanager
def otlp_collector() -> Iterator[Collector]:
    """An OpenTelemetry collector on a free port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/metrics":
                collector.take(gzip_or_plain(body, self.headers.get("Content-Encoding", "")))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportMetricsServiceResponse().SerializeToString())

        def log_message(self, *_: object) -> None:
            """Write no log."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, name="collector", daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def gzip_or_plain(body: bytes, encoding: str) -> bytes:
    """Return the body of a request without its compression."""
    return gzip.decompress(body) if encoding == "gzip" else body
