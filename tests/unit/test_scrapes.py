"""Who asks lgssd for its metrics: the socket, the processes, the file."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lgss_keyring.daemon import metrics, scrapes
from lgss_keyring.formats.config import Config, Krb5, Metrics
from lgss_keyring.system.log import Log
from tests.support.samples import Samples

GET = b"GET /metrics HTTP/1.1\r\nHost: lgssd\r\n\r\n"


class Worker:
    """One whose page cannot be looked at any more when the process has closed it."""

    owner = 1000
    jobs = {1: None}
    is_open = True

    @property
    def is_blocked(self) -> bool:
        assert self.is_open
        return True


class Loop:
    """lgssd's loop with nothing but scrapes."""

    def __init__(self, folder: Path, textfile: str = "") -> None:
        worker = Worker()

        def close_in_child() -> None:
            worker.is_open = False

        class Dispatcher:
            metrics = metrics_of_one_upcall()
            waiting = 0
            reaper = SimpleNamespace(found={})
            pool = SimpleNamespace(all=lambda: [worker], close_in_child=close_in_child)

            def __len__(self) -> int:
                return 0

        folder.chmod(0o700)
        self.log_file = folder / "log"
        log = Log("debug", str(self.log_file), journal="/-", syslog="/-", kmsg="/dev/null")
        settings = Config(
            krb5=Krb5(ccache_directory=str(folder / "tickets")), metrics=Metrics(textfile=textfile)
        )
        self.path = str(folder / scrapes.SOCKET_NAME)
        self.selector = selectors.DefaultSelector()
        dispatcher: Any = Dispatcher()
        self.scrapes = scrapes.Scrapes(dispatcher, lambda: settings, self.selector, log, lambda: None)
        self.scrapes.listen_beside(str(folder / "upcall.sock"))

    def until(self, is_done: Callable[[], bool]) -> None:
        """Turn until ``is_done()``."""
        end = time.monotonic() + 60
        while not is_done():
            assert time.monotonic() < end, self.log()
            for key, _ in self.selector.select(0.02):
                key.data()
            self.scrapes.turn()

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def connect(self, request: bytes = b"") -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        connection.send(request)
        connection.setblocking(False)
        return connection

    def ask(self, request: bytes = GET) -> bytes:
        """The response to ``request``."""
        found = b""
        is_over = False

        def read() -> bool:
            nonlocal found, is_over
            try:
                while data := connection.recv(65536):
                    found += data
                is_over = True
            except BlockingIOError:
                pass
            except ConnectionResetError:
                is_over = True  # not all of the request was read
            return is_over

        with self.connect(request) as connection:
            self.until(read)
        return found

    def at_work(self) -> int:
        return len(self.scrapes._scrapes)


def metrics_of_one_upcall() -> metrics.Metrics:
    counters = metrics.Metrics()
    counters.upcalls["established", metrics.NONE, "krb5", metrics.LGSSD] = 1
    return counters


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    loop = Loop(tmp_path)
    yield loop
    loop.scrapes.close()
    assert not os.path.exists(loop.path)


def test_an_answer_is_openmetrics(loop: Loop) -> None:
    head, _, body = loop.ask().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0")
    assert b"Content-Length: %d" % len(body) in head
    found = Samples(body.decode())
    assert found.upcalls("established") == 1
    assert found.value("lgssd_workers", owner="users", state="blocked") == 1
    loop.until(lambda: not loop.at_work())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\0\xff\r\n\r\n", b"400"),
        (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics?x=1 HTTP/1.1\r\nAccept: text/plain\r\n\r\n", b"200"),
    ],
)
def test_the_request_line_decides(loop: Loop, request_: bytes, status: bytes) -> None:
    assert loop.ask(request_).split()[1] == status


def test_a_request_that_is_too_long_gets_nothing(loop: Loop) -> None:
    assert loop.ask(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9000) == b""
    assert not loop.log()


def test_two_at_a_time_and_five_seconds(loop: Loop) -> None:
    silent = [loop.connect() for _ in range(2)]
    loop.until(lambda: loop.at_work() == 2)
    began = time.monotonic()
    assert loop.ask().startswith(b"HTTP/1.0 503 ")
    loop.until(lambda: not loop.at_work())
    assert time.monotonic() - began > 3
    for each in silent:
        assert each.recv(1) == b""
        each.close()
    assert loop.ask().startswith(b"HTTP/1.0 200 ")


def test_root_alone_may_connect(loop: Loop) -> None:
    assert os.stat(loop.path).st_mode & 0o777 == 0o600


def test_a_socket_that_was_left_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = str(tmp_path / "metrics.sock")
    scrapes.listen(path).close()
    with scrapes.listen(path), pytest.raises(OSError, match="in use"):
        scrapes.listen(path)


def test_the_file_is_there_and_readable(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "lgssd.prom.new").symlink_to("/dev/full")  # left over, or put there
    loop = Loop(tmp_path, str(folder / "lgssd.prom"))
    try:
        loop.until(lambda: (folder / "lgssd.prom").exists() and not loop.at_work())
        assert os.listdir(folder) == ["lgssd.prom"]
        assert (folder / "lgssd.prom").stat().st_mode & 0o777 == 0o644
        text = (folder / "lgssd.prom").read_text()
        assert Samples(text, is_openmetrics=False).upcalls("established") == 1
        assert 50 < loop.scrapes.timeout <= 60
    finally:
        loop.scrapes.close()


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    loop = Loop(tmp_path, str(tmp_path / "none/lgssd.prom"))
    try:
        for _ in range(2):
            loop.scrapes._next_file = 0.0
            loop.until(lambda: loop.at_work() == 1)
            loop.until(lambda: not loop.at_work())
        assert loop.log().count("no metrics now: [Errno 2]") == 1
    finally:
        loop.scrapes.close()
