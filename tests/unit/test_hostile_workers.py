"""lgssd's pool of workers, with workers that their users have taken over."""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lgss_keyring.daemon import limits, pool
from lgss_keyring.daemon.negotiation import Negotiation
from lgss_keyring.daemon.pool import Pool
from lgss_keyring.daemon.resident_worker import Worker
from lgss_keyring.formats import config, job_messages, worker_messages
from lgss_keyring.formats.callout import UpcallRequest, format_callout, parse_request
from lgss_keyring.formats.outcome import Answer
from lgss_keyring.monitor.deadline import Deadline
from lgss_keyring.system.log import Log

UID = 61234


def request(uid: int = UID) -> UpcallRequest:
    text = format_callout(uid=uid, gid=uid, lustre_service=1, target_nid=0x20000C0A80105, obd_name="mdc")
    return parse_request(["create", "5", "user", "lgss:x", text, str(uid), str(uid), "0", "0", "0"])


class Client:
    """Somebody who has asked; takes down what a worker says."""

    def __init__(self) -> None:
        self.request = request()
        self.is_begun = False
        self.messages: list[bytes] = []
        self.ends: list[str] = []

    def received(self, message: bytes) -> None:
        self.messages.append(message)

    def worker_ended(self, how: str) -> None:
        self.ends.append(how)

    def moved(self) -> None:
        pytest.fail("nothing is blocked here")


class HostilePool:
    """A pool whose workers do what ``work`` does, with their end of the connection."""

    def __init__(self, work: Callable[[socket.socket, job_messages.Page], None]) -> None:
        def run(
            connection: socket.socket,
            page: job_messages.Page,
            uid: int,
            is_machine: bool,
            first: UpcallRequest,
            settings: config.Config,
            level: str,
        ) -> NoReturn:
            try:
                connection.send(job_messages.pack_group(uid, True))
                work(connection, page)
            finally:
                os._exit(0)

        self.selector = selectors.DefaultSelector()
        self.pool = Pool(self.selector, run, Log("error"), lambda: self.pool.close_in_child())

    def worker(self, uid: int = UID) -> Worker | None:
        return self.pool.worker_for(uid, request(uid), config.Config(), "error")

    def turn(self, seconds: float = 0.05) -> None:
        for key, _ in self.selector.select(seconds):
            key.data()
        self.pool.look_after()
        self.pool.reap()

    def until(self, condition: Callable[[], bool], seconds: float = 10) -> bool:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            self.turn()
        return condition()


@pytest.fixture
def pools() -> Iterator[Callable[..., HostilePool]]:
    made: list[HostilePool] = []

    def make(work: Any) -> HostilePool:
        made.append(HostilePool(work))
        return made[-1]

    yield make
    for each in made:
        each.pool.close()
        assert each.until(lambda each=each: not each.pool.has_processes)  # type: ignore[misc]
        each.selector.close()


def stopped(connection: socket.socket, page: job_messages.Page) -> None:
    page.idle()
    os.kill(os.getpid(), signal.SIGSTOP)


def deaf(connection: socket.socket, page: job_messages.Page) -> None:
    page.idle()
    connection.close()
    time.sleep(60)


@pytest.mark.parametrize("work", [stopped, deaf])
def test_a_worker_that_does_not_end_is_killed(
    pools: Callable[..., HostilePool], work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any process of that user may stop it, and 64 stopped workers would keep all users out for ever."""
    monkeypatch.setattr(limits, "LEAVING_SECONDS", 0.2)
    hostile = pools(work)
    worker = hostile.worker()
    assert worker is not None and hostile.until(lambda: worker.gid is not None)
    hostile.pool.retire(worker)
    assert hostile.pool.has_processes
    assert hostile.until(lambda: not hostile.pool.has_processes)


def flooding(connection: socket.socket, page: job_messages.Page) -> None:
    while True:
        connection.send(job_messages.with_number(77, b"S"))


def test_a_flood_of_messages_ends_its_worker(pools: Callable[..., HostilePool]) -> None:
    """About jobs that it does not have, too."""
    hostile = pools(flooding)
    worker = hostile.worker()
    assert worker is not None and hostile.until(lambda: worker.is_gone)
    assert worker.messages <= limits.MESSAGES_OF_A_JOB + 1


def telling(connection: socket.socket, page: job_messages.Page) -> None:
    number = job_messages.split(connection.recv(8192))[0]
    while True:
        connection.send(job_messages.with_number(number, worker_messages.pack_step("warning", "x" * 999)))


def test_a_flood_of_steps_ends_its_worker(pools: Callable[..., HostilePool], tmp_path: Path) -> None:
    """Root asks for that user, so the lines have no other limit."""

    class OfRoot(Negotiation):
        """A request for a context of the user's."""

        def arguments(self) -> tuple[None, list[str]]:
            return None, ["x"] * 10

        @property
        def subject(self) -> str:
            return "key 5"

        def finish(self, answer: Answer) -> None:
            pytest.fail("it begins anew with another worker")

    hostile = pools(telling)
    worker = hostile.worker()
    assert worker is not None

    class Dispatcher:
        pool = hostile.pool

        def changed(self, negotiation: Negotiation) -> None:
            pass

    asked = OfRoot(Dispatcher(), 0, False, lambda: None)
    asked.request, asked.log = (
        request(),
        Log("info", str(tmp_path / "log"), "/nonexistent", "/nonexistent", kmsg=""),
    )
    asked.deadline = Deadline(time.monotonic() + 20, 20, "a test")
    asked.start(worker)
    assert hostile.until(lambda: worker.is_gone)
    assert asked.waits
    assert len((tmp_path / "log").read_text().splitlines()) == worker_messages.STEP_LIMIT


def lingering() -> socket.socket:
    """A connection whose last close takes as long as its other end does not read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))
    if os.fork() == 0:
        ours.close()
        time.sleep(4)  # nobody reads
        os._exit(0)
    theirs.close()
    return ours


def sending_descriptors(connection: socket.socket, page: job_messages.Page) -> None:
    for _ in range(2):
        sent = lingering()
        socket.send_fds(connection, [job_messages.with_number(77, b"C")], [sent.fileno()])
        sent.close()
    connection.recv(10)


@pytest.mark.parametrize("message", [False, True], ids=["read", "left in the queue"])
def test_descriptors_of_a_worker_hold_up_nothing(
    pools: Callable[..., HostilePool], monkeypatch: pytest.MonkeyPatch, message: bool
) -> None:
    monkeypatch.setattr(pool, "refuse_descriptors", lambda end: False)  # as before Linux 6.16
    hostile = pools(sending_descriptors)
    worker = hostile.worker()
    assert worker is not None and hostile.until(lambda: worker.gid is not None)
    time.sleep(0.5)
    started = time.monotonic()
    if message:
        hostile.pool.kill(worker, "a test")
    assert hostile.until(lambda: worker.is_gone)
    assert hostile.until(lambda: not hostile.pool.has_processes)
    assert time.monotonic() - started < 3


def test_no_worker_has_the_page_of_another(pools: Callable[..., HostilePool]) -> None:
    """By a page its worker is killed, as blocked beyond its deadline."""

    def map_count() -> int:
        with open("/proc/self/maps") as maps:
            return sum("/dev/zero (deleted)" in line for line in maps)

    def tell(connection: socket.socket, page: job_messages.Page) -> None:
        page.step(str(map_count()))
        connection.recv(100)

    keep = mmap.mmap(-1, 4096)
    before = map_count()
    hostile = pools(tell)
    workers = [hostile.worker(UID + at) for at in range(3)]
    for each in workers:
        assert each is not None and hostile.until(lambda each=each: each.page.look()[2] != "")  # type: ignore[misc]
        assert int(each.page.look()[2]) == before + 1
    keep.close()
