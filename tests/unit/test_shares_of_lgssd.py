"""What one user's requests may take of lgssd, and what is left for the others."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from lgss_keyring.daemon import limits
from lgss_keyring.daemon.dispatcher import Dispatcher
from lgss_keyring.daemon.settings import Settings
from lgss_keyring.daemon.upcall import Upcall
from lgss_keyring.daemon.upcall_messages import Upcall as Message
from lgss_keyring.formats import job_messages, worker_messages
from lgss_keyring.formats.callout import format_callout
from lgss_keyring.formats.outcome import Established, Failed
from lgss_keyring.front import lgssd_messages
from lgss_keyring.monitor import init_channel
from lgss_keyring.system import subordinate
from lgss_keyring.system.log import Log

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has lgssd's folders")

BLOCKED, QUICK = 61000, 62000
"""Workers of the uids from the first on never answer, and those of the uids from the second on do."""
SECRETIVE, SCANNING = 63000, 63001
"""A worker of the first answers with a context, and one of the second looks at what it has in memory."""
NID = 0x20000C0A80105


def dump_memory(path: Path) -> None:
    """Write what this process has in memory that it could write to."""
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb") as memory, open(path, "wb") as file:
        for line in maps.readlines():
            if " rw-p " in line and "[v" not in line:
                first, last = (int(word, 16) for word in line.split()[0].split("-"))
                memory.seek(first)
                file.write(memory.read(last - first))


class Connection:
    """What lgssd says to an upcall's child."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def send(self, message: bytes, flags: int) -> None:
        self.messages.append(bytes(message[:9]))


class Lgssd:
    """A dispatcher of upcalls, with workers that do as their uid says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = folder / "lgss_keyring.toml"
        config.write_text(f'[krb5]\nccache_directory = "{folder}/run"\n[log]\nlevel = "error"\n')
        config.chmod(0o644)
        self.config = str(config)
        self.selector = selectors.DefaultSelector()
        log = Log("error")
        self.dispatcher = Dispatcher(Settings(self.config), self.selector, log, self._in_child, self._run)

    def _in_child(self) -> None:
        self.selector.close()
        self.dispatcher.pool.close_in_child()

    def _run(self, connection, page, uid, is_machine, first, *_) -> NoReturn:  # type: ignore[no-untyped-def]
        connection.send(job_messages.pack_group(uid, True))
        failed = worker_messages.pack_outcome(Failed(5, 0, "x", "reason", "", ""))
        if uid == SCANNING:
            dump_memory(self.folder / "memory")
        while message := connection.recv(8192):
            number = job_messages.split(message)[0]
            page.busy(number)
            if uid == SECRETIVE:
                secret = os.urandom(300)
                (self.folder / "secret").write_bytes(secret)
                context = Established(128, b"handle", secret, int(time.time()) + 900)
                connection.send(job_messages.with_number(number, worker_messages.pack_outcome(context)))
                continue
            if BLOCKED <= uid < QUICK or (is_machine and first.requestor_uid):
                time.sleep(60)
            connection.send(job_messages.with_number(number, failed))
            page.idle()
        os._exit(0)

    def ask(self, uid: int, requestor: int, flags: str = "", elapsed: float = 0.0) -> Connection:
        text = format_callout(
            uid=uid, gid=uid, flags=flags, lustre_service=1, target_nid=NID, obd_name="lgss-MDT0000-mdc"
        )
        kind, name = ("lgssc", "x") if flags else ("user", "lgss:x")
        words = ("create", "5", kind, name, text, str(requestor), str(requestor), "0", "0", "0")
        connection = Connection()
        message = Message(elapsed, 30, "", self.config, words)
        self.dispatcher.add(Upcall(connection, message, self.dispatcher, lambda: None))  # type: ignore[arg-type]
        return connection

    def turns(self, until: Callable[[], bool], seconds: float = 5) -> bool:
        end = time.monotonic() + seconds
        while not until() and time.monotonic() < end:
            for key, _ in self.selector.select(0.02):
                key.data()
            self.dispatcher.turn()
        return until()

    def are_blocked(self, count: int) -> bool:
        """Whether ``count`` workers are."""
        return self.turns(lambda: sum(each.is_blocked for each in self.workers()) >= count, 20)

    def workers(self) -> list:  # type: ignore[type-arg]
        return list(self.dispatcher.pool._workers.values())


def answered(connection: Connection) -> bool:
    return any(message[:1] == b"A" for message in connection.messages)


def sent_back(connection: Connection) -> bool:
    return lgssd_messages.DO_IT_YOURSELF in connection.messages


@pytest.fixture
def lgssd(tmp_path: Path) -> Iterator[Lgssd]:
    lgssd = Lgssd(tmp_path)
    yield lgssd
    lgssd.dispatcher.close()
    while lgssd.dispatcher.pool.has_processes:
        lgssd.dispatcher.pool.reap()


def test_root_asks_for_a_blocked_user_and_for_others(lgssd: Lgssd) -> None:
    """A user whose workers are all blocked holds up nothing that root asks for another one."""
    for count in range(1, 5):
        lgssd.ask(BLOCKED, BLOCKED)
        assert lgssd.are_blocked(count)
    lgssd.ask(BLOCKED, 0)
    other = lgssd.ask(QUICK, 0)
    assert lgssd.turns(lambda: answered(other))


def test_a_worker_that_was_stopped_keeps_no_further_request(lgssd: Lgssd) -> None:
    """Any process of its user's may stop it, one of a batch system's too."""
    first = lgssd.ask(QUICK, QUICK)
    assert lgssd.turns(lambda: answered(first))
    (worker,) = lgssd.workers()
    assert lgssd.turns(lambda: not worker.is_blocked)
    os.kill(worker.pid, signal.SIGSTOP)
    kept = lgssd.ask(QUICK, QUICK, elapsed=28.5)
    assert lgssd.turns(lambda: answered(kept))
    next_one = lgssd.ask(QUICK, QUICK)
    assert lgssd.turns(lambda: answered(next_one), 1)
    assert next_one.messages[-1] == first.messages[-1]


def test_requests_for_the_machine_that_may_be_forged_hold_up_none_of_roots(
    lgssd: Lgssd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user chooses the server, and so a name service that does not answer."""
    monkeypatch.setattr(init_channel, "path", lambda config: "/nonexistent/init_channel")
    for count in range(1, 5):
        lgssd.ask(0, BLOCKED, "r")
        assert lgssd.are_blocked(count)
    late, roots = lgssd.ask(0, QUICK, "r", elapsed=limits.ROOM_SECONDS), lgssd.ask(0, 0, "r")
    assert lgssd.turns(lambda: answered(roots))
    assert lgssd.turns(lambda: sent_back(late))


def test_subordinate_uids_of_one_user_cannot_take_all_workers(
    lgssd: Lgssd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = tmp_path / "subuid"
    ranges.write_text(f"mallory:{BLOCKED}:100\n")
    monkeypatch.setattr(subordinate, "PATH", str(ranges))
    monkeypatch.setattr(limits, "WORKERS_OF_SUBORDINATES", 4)
    asked = [lgssd.ask(BLOCKED + at, BLOCKED + at, elapsed=limits.ROOM_SECONDS) for at in range(8)]
    assert lgssd.turns(lambda: sum(map(sent_back, asked)) == 4)
    assert len(lgssd.workers()) == 4
    monkeypatch.setattr(limits, "UPCALLS_OF_A_USER", 4)
    assert not lgssd.dispatcher.has_room(BLOCKED + 50)
    assert lgssd.dispatcher.has_room(QUICK)


def test_where_others_have_all_workers_an_upcall_does_without(
    lgssd: Lgssd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for one second, and not until its time is over."""
    monkeypatch.setattr(limits, "RESIDENT_WORKERS", 3)
    for count in range(3):
        lgssd.ask(BLOCKED + count, BLOCKED + count)
        assert lgssd.are_blocked(count + 1)
    started = time.monotonic()
    asked = lgssd.ask(QUICK, QUICK)
    assert lgssd.turns(lambda: sent_back(asked))
    assert time.monotonic() - started > limits.ROOM_SECONDS / 2


def test_where_no_worker_can_be_made_an_upcall_does_without(
    lgssd: Lgssd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that were taken over may use up the processes of lgssd's cgroup."""

    def fork() -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", fork)
    asked = lgssd.ask(QUICK, QUICK)
    assert lgssd.turns(lambda: sent_back(asked))


def test_no_worker_finds_the_context_of_another_user_in_its_memory(lgssd: Lgssd) -> None:
    """A worker is forked from lgssd, through which the contexts of all users pass."""
    first = lgssd.ask(SECRETIVE, SECRETIVE)
    assert lgssd.turns(lambda: answered(first))
    assert first.messages[-1][1:5] == bytes(4), "no context"
    second = lgssd.ask(SCANNING, SCANNING)
    assert lgssd.turns(lambda: answered(second), 30)
    memory = (lgssd.folder / "memory").read_bytes()
    secret = (lgssd.folder / "secret").read_bytes()
    found = [at for at in range(0, 300 - 16, 4) if secret[at : at + 16] in memory]
    assert len(memory) > 1000000
    assert found == []
