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

from lgss_keyring import sptlrpc
from lgss_keyring.daemon import server
from lgss_keyring.formats import payload, pipe
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.sptlrpc import Target
from lgss_keyring.system.log import Log
from tests.support import peers
from tests.support.site import HOST, LOOPBACK_NID, USER_UID, Site

from .conftest import within
from .test_sptlrpc import Peer, in_user

TARGET = Target(LOOPBACK_NID, 1, "lgss-MDT0000-mdc")


class Daemon:
    """lgssd in a process of its own."""

    def __init__(self, site: Site, port: int, wrapper: list[str] | None = None, **upcall: Any) -> None:
        self.path = str(site.directory / f"lgssd-{time.monotonic_ns()}.socket")
        settings = {
            "rpcsec_gss": {"port": port},
            "upcall": {"timeout": 5, **upcall},
            # A record of the pipe does not tell this node's NID, by whose name it is found else.
            "krb5": {"principal": f"lustre_root/{HOST}"},
        }
        with site.upcalls(settings) as upcalls:  # for its configuration; the rule is not needed
            self.config, self.log_file = upcalls.config_file, upcalls.log_file
        command = ["setpriv", "--pdeathsig", "KILL", *(wrapper or [])]
        command += [sys.executable, "-m", "lgss_keyring.daemon"]
        command += ["--socket", self.path, "--config", str(self.config)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"listening at {self.path}\n"
        self.pid = self.process.pid

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.path)
        connection.settimeout(10)
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


def test_machine(site: Site, daemon: Daemon) -> None:
    """For root alone: see test_ordinary_peer_gets_his_own_alone."""
    with sptlrpc.create_policy("pipe", path=daemon.path) as policy, policy.create_sec(TARGET, "krb5i") as sec:
        sec.release_ctx(sec.lookup_ctx(0).refresh(10))
    assert f"established as lustre_root/{HOST}@" in daemon.log_file.read_text()


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
    """What is too much waits in its sender's queue: nothing is refused, and others go ahead."""
    site.kinit()
    site.kinit(61999)
    reader, writer = os.pipe()

    def flood() -> list[int]:
        with daemon.connect() as connection:
            for seq in range(1, 41):
                connection.send(upcall(seq=seq).pack())
            os.write(writer, b"x")
            answers = [pipe.unpack_downcall(connection.recv(8192)) for _ in range(40)]
        return sorted(seq for seq, answer in answers if isinstance(answer, payload.ContextPayload))

    found: list[list[int]] = []
    site.realm.pause_kdc()
    try:
        thread = threading.Thread(target=lambda: found.append(in_user(USER_UID, flood)))
        thread.start()
        assert os.read(reader, 1)
        assert within(3, lambda: len(daemon.children()) == 16)
        time.sleep(0.3)
        assert len(daemon.children()) == 16
        # Another user's request is taken at once; the KDC answers none of them.
        with daemon.connect() as other:
            other.send(upcall(61999).pack())
            assert within(1, lambda: len(daemon.children()) == 17)
    finally:
        site.realm.resume_kdc()
    thread.join()
    assert found == [list(range(1, 41))]
    os.close(reader)
    os.close(writer)


def test_refusals_cost_no_process_and_few_lines(daemon: Daemon) -> None:
    def ask() -> list[int]:
        with daemon.connect() as connection:
            numbers = []
            for seq in range(1, 101):
                connection.send(upcall(0, seq=seq).pack())
                answer = pipe.unpack_downcall(connection.recv(100))[1]
                assert isinstance(answer, payload.FailurePayload)
                numbers.append(answer.rpc_error)
        return numbers

    before = forks_of_the_machine()
    started = time.monotonic()
    assert in_user(USER_UID, ask) == [errno.EACCES] * 100
    assert forks_of_the_machine() - before < 50
    lines = daemon.log_file.read_text().splitlines()
    assert len(lines) <= 10 * (2 + time.monotonic() - started) and "more of this user's" in lines[9]


def forks_of_the_machine() -> int:
    (line,) = [line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("processes")]
    return int(line.split()[1])


def inodes(pid: int) -> set[str]:
    """What the process has open, beyond the first three."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if int(entry.name) > 2:
            found.add(os.readlink(entry))
    return found


def test_worker_has_nothing_of_the_servers(site: Site, daemon: Daemon) -> None:
    """It is to be taken for its user: no connection, event queue or pipe of ours is his."""
    site.kinit()
    site.realm.pause_kdc()
    try:
        with daemon.connect() as connection:  # root's
            connection.send(upcall(seq=9).pack())

            def workers() -> list[str]:
                return [
                    each
                    for child in daemon.children()
                    for each in Path(f"/proc/{child}/task/{child}/children").read_text().split()
                    if f"Uid:\t{USER_UID}" in Path(f"/proc/{each}/status").read_text()
                ]

            assert within(3, lambda: len(workers()) == 1)
            monitor, worker = int(daemon.children()[0]), int(workers()[0])
            servers = inodes(daemon.pid)
            assert any("eventpoll" in name for name in servers) and len(servers) == 4
            assert not inodes(worker) & servers
            assert inodes(monitor) & servers <= {name for name in servers if name.startswith("socket:")}
            assert len(inodes(monitor) & servers) == 1  # the connection that it answers on
    finally:
        site.realm.resume_kdc()


def test_without_keyrings(site: Site, peer: Peer) -> None:
    """As in most containers: keyctl(2), add_key(2) and request_key(2) are forbidden."""
    site.kinit()
    daemon = Daemon(site, peer.port, wrapper=[sys.executable, "-c", NO_KEYRINGS])
    try:
        assert isinstance(daemon.ask(upcall().pack())[1], payload.ContextPayload)
        assert isinstance(daemon.ask(upcall(0).pack())[1], payload.ContextPayload)
    finally:
        daemon.close()


# A seccomp filter (seccomp(2)) for x86-64 and arm64, whose numbers differ: EPERM, as Docker's.
NO_KEYRINGS = """
import ctypes, os, platform, struct, sys
calls = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[platform.machine()]
program = [(0x20, 0, 0, 0)]
for at, number in enumerate(calls):
    program.append((0x15, len(calls) - at, 0, number))
program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
libc = ctypes.CDLL(None, use_errno=True)
filter = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
assert libc.syscall(calls[2], 0, -3, 0) == -1 and ctypes.get_errno() == 1
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_no_file_is_taken_for_a_stale_socket(site: Site, daemon: Daemon) -> None:
    path = site.directory / "precious"
    path.write_text("data")
    command = [sys.executable, "-m", "lgss_keyring.daemon", "--socket", str(path)]
    done = subprocess.run(
        [*command, "--config", str(daemon.config)], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1 and "Address already in use" in done.stderr
    assert path.read_text() == "data"


def test_policy_after_fork(site: Site, daemon: Daemon) -> None:
    """The child has a connection of its own: on one they would take each other's answers."""
    for uid in (USER_UID, 61999):
        site.kinit(uid)
    with sptlrpc.create_policy("pipe", path=daemon.path) as policy, policy.create_sec(TARGET, "krb5i") as sec:
        sec.release_ctx(sec.lookup_ctx(USER_UID).refresh(10))

        def child() -> list[str]:
            found = []
            for _ in range(3):
                with sec.lookup_ctx(61999) as context:
                    found.append(context.refresh(10).handle.hex())
                    context.die()
            return found

        theirs: list[list[str]] = []
        thread = threading.Thread(target=lambda: theirs.append(in_user(0, child)))
        thread.start()
        ours = []
        for _ in range(3):
            with sec.lookup_ctx(USER_UID) as context:
                ours.append(context.refresh(10).handle.hex())
                context.die()
        thread.join()
        handles = {*ours, *theirs[0]}
        # The first of ours was there before.
        assert len(handles) == 6


def test_full_house(site: Site, daemon: Daemon) -> None:
    """An ordinary user's idle connections give way: subordinate uids make many users of one."""
    idle: list[socket.socket] = []

    def connect(uid: int) -> None:
        os.seteuid(uid)
        try:
            idle.extend(daemon.connect() for _ in range(32))
        finally:
            os.seteuid(0)

    site.kinit()
    try:
        for uid in range(62000, 62009):  # 288
            connect(uid)
        assert isinstance(daemon.ask(upcall().pack())[1], payload.ContextPayload)
        assert idle[0].recv(1) == b""
    finally:
        for connection in idle:
            connection.close()


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


def test_peer_that_gave_way_in_the_same_turn() -> None:
    """What select(2) has found ready may be gone when its turn comes."""
    listener, (ours, theirs) = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), seqpacket_pair()
    with listener, ours, theirs:
        serving = server.Server(listener, lambda upcall, peer: b"", 1.0, Log())
        peer = server.Peer(ours)
        serving._peers[ours.fileno()] = peer
        serving._register(peer)
        theirs.send(upcall().pack())
        serving._drop(peer)
        serving._read(peer)
        assert not serving._monitors


def seqpacket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def lingering_record(connection: socket.socket) -> tuple[socket.socket, bool]:
    """Send a descriptor whose last reference takes 20 s to drop; False if it was refused."""
    sender, sink = peers.lingering(20)
    try:
        socket.send_fds(connection, [b"abc"], [sender.fileno()])
        sent = True
    except OSError as error:
        assert error.errno == errno.EPERM
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))  # nor shall we wait
        sent = False
    sender.close()
    return sink, sent


@pytest.mark.parametrize("kernel", ["this", "before 6.16"])
@pytest.mark.parametrize("then", ["stays", "goes"])
def test_linger_of_one_peer_holds_up_nobody(
    site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch, kernel: str, then: str
) -> None:
    """It would be the thread that serves everybody. A kernel before 6.16 cannot be told to
    refuse descriptors: here by not telling it."""
    daemon = Daemon(site, peer.port, wrapper=None if kernel == "this" else OLD_KERNEL)
    sinks = []
    uid = USER_UID
    site.kinit(uid)
    try:
        os.seteuid(uid)
        try:
            hostile = daemon.connect()
        finally:
            os.seteuid(0)
        for _ in range(2):
            sink, sent = lingering_record(hostile)
            sinks.append(sink)
            assert sent or kernel == "this"
        if then == "goes":
            hostile.close()
        started = time.monotonic()
        for _ in range(3):
            assert isinstance(daemon.ask(upcall().pack())[1], payload.ContextPayload)
        assert time.monotonic() - started < 3
        if then == "stays":
            if sent:
                with pytest.raises(ConnectionResetError):
                    hostile.recv(1)
                assert "sends descriptors" in daemon.log_file.read_text()
            hostile.close()
    finally:
        started = time.monotonic()
        daemon.close()
        for sink in sinks:
            sink.close()
    assert time.monotonic() - started < 3


OLD_KERNEL = [
    sys.executable,
    "-c",
    "import sys; from lgss_keyring.monitor import worker_process as w;"
    "w.refuse_descriptors = lambda end: False;"
    "from lgss_keyring.daemon import __main__; sys.argv[0:4] = ['lgssd'];"
    "__main__.main()",
]
