"""The monitor of one upcall, with a key that answers as told."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from lgss_keyring.formats.callout import parse_request
from lgss_keyring.formats.config import Config
from lgss_keyring.formats.errors import KeyOperationError
from lgss_keyring.formats.outcome import Answer
from lgss_keyring.front import answer, keyctl
from lgss_keyring.front.arguments import Call
from lgss_keyring.front.word import Child
from lgss_keyring.monitor import init_channel, key_answer, service, upcall
from lgss_keyring.monitor.deadline import Deadline
from lgss_keyring.system import keyrings
from lgss_keyring.system.log import Log

USER = "0:krb5:1000:1000::-:1:0x20000c0a80105:lustre-MDT0000-mdc:0x20000c0a80106:0"

MACHINE = USER.replace("1000:1000::", "0:0:r:")


def daemonized(*detach: bool) -> str:
    """What a process says that has become a daemon in this way: whether it is another one than before, and
    in another session; what else it has open; its umask; whether SIGPIPE is ignored."""
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        try:
            # Not pytest's, which are no files.
            sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            own, session = os.getpid(), os.getsid(0)
            upcall.daemonize([writer], *detach)
            left = []
            for number in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):  # the listing's own
                    left.append(os.readlink(f"/proc/self/fd/{number}"))
            kept = {"/dev/null", os.readlink(f"/proc/self/fd/{writer}")}
            ignored = signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
            said = (os.getpid() != own, os.getsid(0) != session, set(left) - kept, oct(os.umask(0)), ignored)
            os.write(writer, str(said).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(first, 0)
    with os.fdopen(reader) as end:
        return end.read()


def test_daemon_leaves_the_session_unless_it_is_told_to_stay() -> None:
    """What is killed with the front's session would leave its key without an answer.  The monitor, which
    the witness waits for, stays the process that it is."""
    assert daemonized() == "(True, True, set(), '0o77', True)"
    assert daemonized(False) == "(False, False, set(), '0o77', True)"


class EndedError(Exception):
    """Stands for the end of the process."""


class Key:
    """Not bound to a context of the kernel at first: EAGAIN so many times (docs/protocol.md 7)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refusals: int) -> None:
        self.payload = b""
        self._refusals = refusals
        monkeypatch.setattr(keyctl, "update", self._update)

    def _update(self, key: int, payload: bytes) -> None:
        self._refusals -= 1
        if self._refusals >= 0:
            raise BlockingIOError(errno.EAGAIN, "not bound yet")
        self.payload = payload


def run(
    monkeypatch: pytest.MonkeyPatch,
    callout: str,
    config: Path,
    started: float,
    session: int = 0,
    uid: int = 1000,
) -> None:
    """Serve an upcall of ``uid`` in this process, up to its end."""

    def end(status: int) -> NoReturn:
        raise EndedError(status)

    monkeypatch.setattr(upcall, "daemonize", lambda descriptors, detach: None)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(Log, "_to_system", lambda *_: None)  # the tests' lines are nobody's business
    words = ["create", "5", "lgssc", "x", callout, str(uid), str(uid), "0", "0", str(session)]
    call = Call(["--config", str(config), *words])
    with pytest.raises(EndedError, match="0"):
        upcall.run(5, call, Child(-1, -1), started, 0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "lgss_keyring.toml"
    text = f'[log]\nfile = "{tmp_path}/log"\n[krb5]\nccache_directory = "{tmp_path}/tickets"\n'
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_defect_is_answered_also_while_the_key_is_not_bound(
    monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    """Whoever waits for the key must not wait for its timeout."""

    def defect(*_: object) -> NoReturn:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(service, "serve", defect)
    key = Key(monkeypatch, refusals=3)
    run(monkeypatch, USER, config, time.monotonic())
    assert key.payload == answer.failure(errno.EIO)
    line = (config.parent / "log").read_text()
    assert "ZeroDivisionError: a defect" in line and "LGSS_ERROR=internal" in line


@pytest.mark.parametrize(("age", "is_answered"), [(0.0, True), (6.0, False)])
def test_failure_before_there_is_a_request_is_brought_for_5_s(
    monkeypatch: pytest.MonkeyPatch, config: Path, age: float, is_answered: bool
) -> None:
    """From the beginning of the upcall: a key that the kernel has not bound by then is a forged one's."""
    key = Key(monkeypatch, refusals=3)
    run(monkeypatch, "nonsense", config, time.monotonic() - age)
    assert key.payload == (answer.failure(errno.EINVAL) if is_answered else b"")
    line = (config.parent / "log").read_text()
    assert "LGSS_ERROR=bad-request" in line
    assert ("cannot update key 5" in line) != is_answered


def test_keyring_that_stays_linked_ends_the_upcall(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    """There is no worker, which would look for credentials in it."""

    def unlink(key: int, keyring: int) -> NoReturn:
        assert key == 77
        raise KeyOperationError("cannot unlink key 77", errno=errno.EACCES)

    def worker(*_: object) -> NoReturn:
        raise AssertionError("a worker was forked")

    monkeypatch.setattr(keyrings, "unlink", unlink)
    # Not even root's own keyring is left to a request for the machine.
    monkeypatch.setattr(keyrings, "owned", lambda key, uid: True)
    monkeypatch.setattr(service, "WorkerProcess", worker)
    for callout, uid in ((MACHINE, 1000), (MACHINE, 0), (USER, 0)):
        key = Key(monkeypatch, refusals=0)
        run(monkeypatch, callout, config, time.monotonic(), session=77, uid=uid)
        assert key.payload == answer.failure(errno.EACCES)
        assert "cannot unlink key 77" in (config.parent / "log").read_text().splitlines()[-1]


@pytest.mark.parametrize(("uid", "age", "patience"), [(1000, 0, 5), (0, 0, 30), (0, 40, 1)])
def test_machine_request_that_may_be_forged_is_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, config: Path, uid: int, age: int, patience: int
) -> None:
    """No context of the kernel is ever bound to a forged one, so its update would be tried until the
    upcall's time is over: 30 s.  An answer that comes later than that has 1 s."""
    context = Answer(b"context", int(time.time()) + 1000, "host/client", None)
    monkeypatch.setattr(service, "serve", lambda *_: context)
    deadlines: list[float] = []

    def give(key: int, key_type: str, answer: Answer, deadline: float, *_: object) -> bool:
        deadlines.append(deadline)
        return True

    monkeypatch.setattr(key_answer, "give", give)
    started = time.monotonic()
    run(monkeypatch, MACHINE, config, started - age, uid=uid)
    (deadline,) = deadlines
    assert started + patience <= deadline <= time.monotonic() + patience


@pytest.mark.parametrize(
    ("callout", "uid", "taken_away"),
    [
        (USER, 1000, [78, 79]),  # it may be a service of root's that works for this user
        (USER[:-1] + "77", 1000, []),  # that process is looked at
        (USER, 0, [77, 78, 79]),
        (MACHINE, 0, [77, 78, 79]),
        (MACHINE, 1000, [77, 78, 79]),
    ],
    ids=["no process", "a process", "for another", "the machine", "the machine by a user"],
)
def test_keyrings_that_are_not_the_users_are_taken_away(
    monkeypatch: pytest.MonkeyPatch, config: Path, callout: str, uid: int, taken_away: list[int]
) -> None:
    """Else root's ticket would be a user's, or a user's the machine's."""

    class ForkedError(BaseException):
        pass

    def worker(*_: object, **__: object) -> NoReturn:
        raise ForkedError

    unlinked: list[int] = []
    monkeypatch.setattr(keyrings, "owned", lambda key, uid: key == 77)
    monkeypatch.setattr(keyrings, "unlink_requestor", lambda found: unlinked.extend(filter(None, found)))
    monkeypatch.setattr(service, "WorkerProcess", worker)
    monkeypatch.setattr(init_channel, "InitChannelWriter", lambda *_: None)
    words = ["create", "5", "lgssc", "x", callout, str(uid), str(uid), "77", "78", "79"]
    with pytest.raises(ForkedError):
        service.serve(parse_request(words), Config(), 0, Deadline(0, 0, ""), Log())
    assert sorted(unlinked) == taken_away
