"""lgssd and the pipe policy: the same contexts through a socket, no key at all."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring import payload, pipe, sptlrpc
from lgss_keyring.errors import LgssError
from lgss_keyring.sptlrpc import Target
from lgss_keyring.testing import peers
from lgss_keyring.testing.site import LOOPBACK_NID, USER_UID, Site

from .conftest import within
from .test_sptlrpc import Peer, in_user

TARGET = Target(LOOPBACK_NID, 1, "lgss-MDT0000-mdc")


class Daemon:
    """lgssd in a process of its own."""

    def __init__(self, site: Site, port: int, **upcall: Any) -> None:
        self.path = str(site.directory / f"lgssd-{time.monotonic_ns()}.socket")
        settings = {"rpcsec_gss": {"port": port}, "upcall": {"timeout": 5, **upcall}}
        with site.upcalls(settings) as upcalls:  # for its configuration; the rule is not needed
            self.config, self.log_file = upcalls.config_file, upcalls.log_file
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "lgss_keyring.daemon"]
        command += ["--socket", self.path, "--config", str(self.config)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"listening at {self.path}\n"
        self.pid = self.process.pid

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(10)
        connection.connect(self.path)
        return connection

    def ask(self, record: bytes) -> tuple[int, payload.ContextPayload | payload.FailurePayload]:
        with self.connect() as connection:
            connection.send(record)
            return pipe.unpack_downcall(connection.recv(pipe.DOWNCALL_LIMIT))

    def children(self) -> list[str]:
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(5) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert not os.path.exists(self.path)


@pytest.fixture(scope="module")
def peer(site: Site) -> Iterator[Peer]:
    peer = Peer(site)
    yield peer
    peer.close()


@pytest.fixture
def daemon(site: Site, peer: Peer) -> Iterator[Daemon]:
    daemon = Daemon(site, peer.port)
    yield daemon
    assert within(5, lambda: not daemon.children())
    daemon.close()


def upcall(uid: int = USER_UID, seq: int = 1, **more: Any) -> pipe.Upcall:
    values = {"gid": uid, "service": 1, "nid": LOOPBACK_NID, "obd_name": "lgss-MDT0000-mdc", **more}
    return pipe.Upcall(seq=seq, uid=uid, **values)


def test_contexts_through_the_pipe(site: Site, peer: Peer, daemon: Daemon) -> None:
    site.kinit()
    with sptlrpc.create_policy("pipe", path=daemon.path) as policy:
        with policy.create_sec(TARGET, "krb5p") as sec, sec.lookup_ctx(USER_UID) as context:
            assert context.refresh(10).key == 0
            assert daemon.path in context.display()
            sealed = context.seal(b"gss", b"message")
            head, (header, token) = peer.ask(context, {"op": "seal", "length": 7}, b"gss", sealed)
            assert context.unseal(header, token, head["length"]) == b"egassem"
            with sec.lookup_ctx(USER_UID) as again:
                assert again is context
        assert policy.alive == 0


def test_many_users_at_once(site: Site, daemon: Daemon) -> None:
    uids = list(range(61350, 61358))
    for uid in uids:
        site.kinit(uid)
    with sptlrpc.create_policy("pipe", path=daemon.path) as policy:
        with policy.create_sec(TARGET, "krb5i") as sec:
            contexts = [sec.lookup_ctx(uid) for uid in uids]
            futures = [context.refresh_later() for context in contexts]
            assert [future.result(10) for future in futures] == contexts
            assert len({context.handle for context in contexts}) == len(uids)
            for context in contexts:
                sec.release_ctx(context)


def test_ordinary_peer_gets_his_own_alone(site: Site, daemon: Daemon) -> None:
    site.kinit()
    site.kinit(61999)

    def asks_for(uid: int) -> int:
        _, answer = daemon.ask(upcall(uid).pack())
        return answer.rpc_error if isinstance(answer, payload.FailurePayload) else 0

    assert in_user(USER_UID, lambda: asks_for(USER_UID)) == 0
    assert in_user(USER_UID, lambda: asks_for(61999)) == errno.EACCES
    assert in_user(USER_UID, lambda: asks_for(0)) == errno.EACCES  # `r`, the machine's
    assert "may not ask for" in daemon.log_file.read_text()


def test_failures_are_told(site: Site, daemon: Daemon) -> None:
    site.realm.ccache_of(61360).unlink(missing_ok=True)
    seq, answer = daemon.ask(upcall(61360, seq=77).pack())
    assert (seq, answer) == (77, payload.FailurePayload(errno.ENOKEY, 7 << 16))
    with sptlrpc.create_policy("pipe", path=daemon.path) as policy:
        with policy.create_sec(TARGET, "krb5i") as sec, sec.lookup_ctx(61360) as context:
            with pytest.raises(LgssError) as caught:
                context.refresh(10)
            assert (caught.value.errno, caught.value.kind) == (errno.ENOKEY, "upcall")


def test_records_of_the_wrong_size(daemon: Daemon) -> None:
    for length in (4, 87, 89, 200):
        record = struct.pack("=I", 0xABCDEF) + bytes(length - 4)
        assert daemon.ask(record) == (0xABCDEF, payload.FailurePayload(errno.EINVAL, 0))
    with daemon.connect() as connection:
        connection.send(b"abc")  # too short to have a seq: no answer, and no harm
        connection.send(struct.pack("=I", 5))
        assert pipe.unpack_downcall(connection.recv(1000))[0] == 5


def test_silent_kdc_has_a_deadline(site: Site, peer: Peer) -> None:
    daemon = Daemon(site, peer.port, timeout=1)
    site.kinit()
    site.realm.pause_kdc()
    try:
        started = time.monotonic()
        _, answer = daemon.ask(upcall().pack())
        assert answer == payload.FailurePayload(errno.ETIMEDOUT, 0)
        assert time.monotonic() - started < 2.5
    finally:
        site.realm.resume_kdc()
        daemon.close()


def test_killed_monitor_is_answered(site: Site, daemon: Daemon) -> None:
    site.kinit()
    site.realm.pause_kdc()
    try:
        with daemon.connect() as connection:
            connection.send(upcall(seq=9).pack())
            assert within(2, lambda: len(daemon.children()) == 1)
            os.kill(int(daemon.children()[0]), signal.SIGKILL)
            answer = pipe.unpack_downcall(connection.recv(1000))
            assert answer == (9, payload.FailurePayload(errno.EIO, 0))
    finally:
        site.realm.resume_kdc()


def test_one_user_cannot_take_all_workers(site: Site, daemon: Daemon) -> None:
    site.kinit()
    site.kinit(61999)
    site.realm.pause_kdc()
    try:

        def flood() -> list[int]:
            with daemon.connect() as connection:
                for seq in range(1, 41):
                    connection.send(upcall(seq=seq).pack())
                time.sleep(0.5)
                connection.settimeout(0.5)
                refused = []
                try:
                    while True:
                        seq, answer = pipe.unpack_downcall(connection.recv(1000))
                        assert isinstance(answer, payload.FailurePayload)
                        refused.append(answer.rpc_error)
                except TimeoutError:
                    return refused

        refused = in_user(USER_UID, flood)
        assert refused.count(errno.EBUSY) == 24
    finally:
        site.realm.resume_kdc()
    assert isinstance(daemon.ask(upcall(61999).pack())[1], payload.ContextPayload)


def test_answers_nobody_asked_for_are_dropped(site: Site) -> None:
    """And a seq's second answer; a server of our own stands for lgssd."""
    path = str(site.directory / "fake.socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            request = pipe.Upcall.unpack(connection.recv(100))
            failure = payload.FailurePayload(errno.EPERM, 0).pack()
            connection.send(pipe.pack_downcall(request.seq + 1, failure))
            connection.send(b"xx")
            connection.send(pipe.pack_downcall(request.seq, failure))
            connection.send(pipe.pack_downcall(request.seq, failure))
            time.sleep(0.5)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with sptlrpc.create_policy("pipe", path=path) as policy:
            with policy.create_sec(TARGET, "krb5i") as sec, sec.lookup_ctx(5) as context:
                with pytest.raises(LgssError) as caught:
                    context.refresh(5)
                assert caught.value.errno == errno.EPERM
            assert policy.alive == 0
    finally:
        thread.join()
        listener.close()
        os.unlink(path)


def test_lgssd_that_is_not_there_or_goes_away(site: Site, peer: Peer) -> None:
    with sptlrpc.create_policy("pipe", path="/nonexistent/socket") as policy:
        with policy.create_sec(TARGET, "krb5i") as sec:
            with pytest.raises(LgssError, match="cannot ask lgssd at /nonexistent/socket") as caught:
                sec.lookup_ctx()
            assert caught.value.errno == errno.ENOENT
    daemon = Daemon(site, peer.port)
    site.kinit()
    site.realm.pause_kdc()
    try:
        with sptlrpc.create_policy("pipe", path=daemon.path) as policy:
            with policy.create_sec(TARGET, "krb5i") as sec, sec.lookup_ctx(USER_UID) as context:
                daemon.close()
                with pytest.raises(LgssError, match="closed the connection"):
                    context.refresh(5)
            assert policy.alive == 0
    finally:
        site.realm.resume_kdc()


def test_answer_that_does_not_come(site: Site) -> None:
    path = str(site.directory / "mute.socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    try:
        with sptlrpc.create_policy("pipe", path=path, upcall_timeout=0.5) as policy:
            with policy.create_sec(TARGET, "krb5i") as sec, sec.lookup_ctx(5) as context:
                started = time.monotonic()
                with pytest.raises(LgssError, match=r"no answer from lgssd within 0.5 s") as caught:
                    context.refresh(5)
                assert caught.value.errno == errno.ETIMEDOUT and time.monotonic() - started < 1.5
    finally:
        listener.close()
        os.unlink(path)


def test_second_lgssd_and_a_stale_socket(site: Site, peer: Peer, daemon: Daemon) -> None:
    command = [sys.executable, "-m", "lgss_keyring.daemon", "--socket", daemon.path]
    done = subprocess.run(
        [*command, "--config", str(daemon.config)], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1 and "Address already in use" in done.stderr
    other = Daemon(site, peer.port)
    other.process.kill()
    other.process.wait()
    assert os.path.exists(other.path)
    again = subprocess.Popen(
        [*command[:-1], other.path, "--config", str(other.config)], stdout=subprocess.PIPE, text=True
    )
    assert again.stdout is not None and again.stdout.readline() == f"listening at {other.path}\n"
    again.terminate()
    assert again.wait(5) == 0
    again.stdout.close()


def test_linger_of_one_peer_holds_up_nobody(site: Site, daemon: Daemon) -> None:
    """See test_privsep: here it would be the thread that serves everybody."""
    sender, sink = peers.lingering(20)
    site.kinit()
    with daemon.connect() as hostile:
        try:
            socket.send_fds(hostile, [b"abc"], [sender.fileno()])
        except OSError as error:
            assert error.errno == errno.EPERM  # the kernel refuses it
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))  # nor shall we wait
        sender.close()
        started = time.monotonic()
        assert isinstance(daemon.ask(upcall().pack())[1], payload.ContextPayload)
        assert time.monotonic() - started < 3
    sink.close()
