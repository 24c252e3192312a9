"""What init_channel's answers mean, and a worker's whole way through it with gssnull."""

from __future__ import annotations

import errno
import os
import resource
import struct
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from lgss_keyring.formats.callout import UpcallRequest, format_callout, parse_request
from lgss_keyring.formats.config import Config, Names
from lgss_keyring.formats.errors import ChannelError, LgssError, MechanismError
from lgss_keyring.formats.nid import Nid
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.front import keyctl
from lgss_keyring.monitor import init_channel, key_answer
from lgss_keyring.monitor.worker_process import WorkerProcess
from lgss_keyring.system import processes
from lgss_keyring.system.log import Log
from lgss_keyring.worker import confinement, work
from lgss_keyring.worker.channel.lustre import LustreChannel
from lgss_keyring.worker.mech.gssnull import NullInitiator
from lgss_keyring.worker.monitor_connection import MonitorConnection

from .workers import Fake, wait

UID = 61234
PTL4 = Nid.parse("255@ptl42").to_int()
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody")


def request(uid: int = UID, nid: int = PTL4, obd_name: str = "lustre-MDT0000") -> UpcallRequest:
    text = format_callout(
        mechanism="gssnull", uid=uid, gid=uid, lustre_service=1, target_nid=nid, obd_name=obd_name
    )
    return parse_request(["create", "5", "lgssc", "x", text, str(uid), str(uid), "0", "0", "0"])


def reply(token: bytes) -> bytes:
    return struct.pack("=IIIII4sI", 0, 0, 0, 2048, 4, b"hdl.", len(token)) + token + bytes(-len(token) % 4)


def failure_of(status: int, token: bytes = b"token") -> ChannelError:
    channel = LustreChannel("lustre-MDT0000", lambda _: (status, b""))
    with pytest.raises(ChannelError) as caught:
        channel.exchange(token, b"")
    return caught.value


@pytest.mark.parametrize(
    ("status", "number", "kind"),
    [
        (-errno.EINVAL, errno.EINVAL, "security-changed"),
        (-errno.E2BIG, errno.E2BIG, "ticket-too-big"),
        (-errno.EACCES, errno.EACCES, "refused-by-server"),
        (-errno.ETIMEDOUT, errno.ETIMEDOUT, "acceptor-silent"),
        (-errno.EIO, errno.EIO, "rpc-failed"),
        (5, errno.EPROTO, "rpc-failed"),
    ],
)
def test_each_status_says_what_it_means(status: int, number: int, kind: str) -> None:
    error = failure_of(status)
    assert (error.errno, error.kind) == (number, kind) and error.hint


def test_a_ticket_that_is_too_big_is_told_with_its_size() -> None:
    error = failure_of(-errno.E2BIG, bytes(16300))
    assert "16300 bytes" in error.reason and "PAC" in error.hint

    def work(connection: MonitorConnection) -> Failed:
        connection.send_group(7)
        connection.send_token(bytes(16385))
        raise AssertionError

    answer = wait(WorkerProcess(work, writer := Fake()))
    assert answer.failure is not None and answer.failure.kind == "ticket-too-big"
    assert "16385 bytes" in answer.failure.reason and writer.got == []


@pytest.mark.parametrize("token", [b"", b"1234567", b"123456789"])
def test_gssnull_context_has_8_bytes(token: bytes) -> None:
    initiator = NullInitiator(request())
    first = initiator.step(None)
    assert first is not None and len(first) == 8
    with pytest.raises(MechanismError, match=f"has {len(token)} bytes, not 8"):
        initiator.step(token)


def test_long_obd_name_is_cut_to_what_the_kernel_keeps(tmp_path: Path) -> None:
    device = tmp_path / init_channel.INIT_CHANNEL
    device.parent.mkdir(parents=True)
    device.write_bytes(b"")
    settings = Config(lustre=Config().lustre.__class__(parameters=str(tmp_path)))
    writer = init_channel.InitChannelWriter(request(obd_name="x" * 100), settings)
    assert writer._obd_name.value == b"x" * 63


def test_target_that_is_being_unmounted_is_one_quiet_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Fake(OSError(errno.EINVAL, "Invalid argument"))
    writer._result = OSError(errno.EINVAL, "Invalid argument")
    with pytest.raises(LgssError) as caught:
        writer.result()
    assert (caught.value.kind, caught.value.errno) == ("target-gone", errno.EINVAL)
    answer = Answer.of_failure(Failed.by(caught.value))

    def update(key: int, data: bytes) -> None:
        if gone:
            raise OSError(errno.ENOKEY, "Required key not available")

    monkeypatch.setattr(keyctl, "update", update)
    for gone, level, lines in ((True, "warning", 0), (True, "info", 1), (False, "warning", 1)):
        file = tmp_path / f"log-{gone}-{level}"
        log = Log(level, str(file), journal="/nonexistent", syslog="/nonexistent", kmsg="/nonexistent")
        key_answer.give(5, "lgssc", answer, 0.0, log)
        text = file.read_text() if file.exists() else ""
        assert text.count("\n") == lines
        assert not text or f"] {level}: " in text


@pytest.fixture(autouse=True)
def memory_of_a_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """These workers are forked from pytest, which has more memory after a thousand tests than a worker
    may have, and crawls then."""
    monkeypatch.setitem(confinement.OWN_BOUNDS, resource.RLIMIT_DATA, resource.RLIM_INFINITY)


def run(settings: Config, uid: int = UID, writer: Fake | None = None) -> Answer:
    monitor, started = os.getpid(), processes.own_start_time()

    def serve(connection: MonitorConnection) -> object:
        return work.run(request(uid), settings, monitor, started, connection)

    return wait(WorkerProcess(serve, writer or Fake((0, reply(b"12345678")))))  # type: ignore[arg-type]


@needs_root
def test_name_program_runs_as_root_and_the_rest_as_the_user(tmp_path: Path) -> None:
    """execve(2) as the user would make a process that the user can trace."""
    program = tmp_path / "nid2hostname"
    seen = tmp_path / "seen"
    program.write_text(f"#!/bin/sh\nid -u > {seen}\nenv >> {seen}\necho node7.example\n")
    program.chmod(0o755)
    writer = Fake((0, reply(b"12345678")))
    answer = run(Config(names=Names(program=str(program), canonicalize=False)), writer=writer)
    assert answer.failure is None, answer.failure
    decoded = payload.unpack(answer.payload)
    assert isinstance(decoded, payload.ContextPayload) and decoded.context == b"12345678"
    uid, *environment = seen.read_text().splitlines()
    assert uid == "0" and len(writer.got) == 1
    variables = {line.partition("=")[0] for line in environment}
    assert variables <= {"HOME", "PATH", "PWD", "_", "SHLVL", "OLDPWD"}


@needs_root
def test_name_program_that_fails_is_the_answer(tmp_path: Path) -> None:
    answer = run(Config(names=Names(program=str(tmp_path / "none"))))
    assert answer.failure is not None and answer.failure.kind == "no-host-name"
