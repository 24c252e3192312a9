"""Metrics of lgssd as Prometheus reads them."""

from __future__ import annotations

import socket
import time
from typing import Any

from prometheus_client import parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families


class Samples:
    """What was read from ``text``, which is OpenMetrics or Prometheus' older format."""

    def __init__(self, text: str, is_openmetrics: bool = True) -> None:
        families: Any = (
            text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
            if is_openmetrics
            else parser.text_string_to_metric_families(text)
        )
        self._all = [each for family in families for each in family.samples]
        self.names = {each.name for each in self._all}

    def value(self, name: str, **labels: str) -> float:
        """The only one of ``name`` with these labels; 0 if there is none."""
        found = [each.value for each in self._all if (each.name, each.labels) == (name, labels)]
        assert len(found) <= 1
        return float(found[0]) if found else 0.0

    def upcalls(self, outcome: str, cause: str = "none", mechanism: str = "krb5") -> float:
        """How many upcalls have ended so."""
        carrier = "own_process" if outcome == "handed_back" else "lgssd"
        labels = {"outcome": outcome, "cause": cause, "mechanism": mechanism, "carrier": carrier}
        return self.value("lgssd_upcalls_total", **labels)


def connect(path: str) -> socket.socket:
    """A connection to the socket ``path``, at which lgssd may not listen yet."""
    end = time.monotonic() + 30
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return connection


def ask(path: str, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: lgssd\r\n\r\n") -> tuple[bytes, bytes]:
    """Head and body of the response to ``request`` at the socket ``path``."""
    response = b""
    with connect(path) as connection:
        try:
            connection.sendall(request)
        except BrokenPipeError:
            pass  # it was not wanted, and the answer is there
        try:
            while data := connection.recv(65536):
                response += data
        except ConnectionResetError:
            pass  # not all of the request was read
    head, _, body = response.partition(b"\r\n\r\n")
    return head, body


def scrape(path: str) -> Samples:
    """The metrics at the socket ``path``."""
    head, body = ask(path)
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Content-Length: %d" % len(body) in head
    return Samples(body.decode())
