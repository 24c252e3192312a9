"""lgssd and peers that are silent, greedy or hostile."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from lgss_keyring.daemon.dispatcher import Dispatcher
from lgss_keyring.daemon.peers import Peer as Connection
from lgss_keyring.daemon.records import Records
from lgss_keyring.daemon.settings import Settings
from lgss_keyring.formats import payload, pipe
from lgss_keyring.system.log import Log
from tests.support import peers
from tests.support.site import STRANGER_UID, USER_UID, Site

from .lgssd_process import Daemon, upcall
from .library import Peer, in_user
from .waiting import within


def test_records_of_the_wrong_size(daemon: Daemon) -> None:
    for length in (4, 87, 89, 200):
        record = struct.pack("=I", 0xABCDEF) + bytes(length - 4)
        assert daemon.ask(record) == (0xABCDEF, payload.FailurePayload(errno.EINVAL, 0))
    with daemon.connect() as connection:
        connection.send(b"abc")  # too short to have a seq: no answer, and no harm
        connection.send(struct.pack("=I", 5))
        assert pipe.unpack_downcall(connection.recv(1000))[0] == 5


def test_one_user_cannot_take_all_workers(site: Site, daemon: Daemon) -> None:
    """What is too much waits in its sender's queue: nothing is refused, and others go ahead."""
    site.kinit()
    site.kinit(STRANGER_UID)
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
        assert within(3, lambda: len(daemon.children()) == 4)
        time.sleep(0.3)
        assert len(daemon.children()) == 4
        # Another user's request is taken at once; the KDC answers none of them.
        with daemon.connect() as other:
            other.send(upcall(STRANGER_UID).pack())
            assert within(1, lambda: len(daemon.children()) == 5)
    finally:
        site.realm.resume_kdc()
    thread.join()
    assert found == [list(range(1, 41))]
    os.close(reader)
    os.close(writer)


def test_refusals_cost_no_process_and_few_lines(site: Site, peer: Peer) -> None:
    def ask() -> list[int]:
        with daemon.connect() as connection:
            numbers = []
            for seq in range(1, 101):
                connection.send(upcall(0, seq=seq).pack())
                answer = pipe.unpack_downcall(connection.recv(100))[1]
                assert isinstance(answer, payload.FailurePayload)
                numbers.append(answer.rpc_error)
        return numbers

    daemon = Daemon(site, peer.port, level="info")
    try:
        before = forks_of_the_machine()
        uid = USER_UID + 300 + os.getpid() % 100  # its lines are counted for 10 s: not those of another test
        assert in_user(uid, ask) == [errno.EACCES] * 100
        assert forks_of_the_machine() - before < 50
        lines = daemon.log_file.read_text().splitlines()
        assert len(lines) == 20 and f"LGSS_REQUESTOR={uid}" in lines[0] and "not shown" in lines[19]
    finally:
        daemon.close()


def forks_of_the_machine() -> int:
    (line,) = [line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("processes")]
    return int(line.split()[1])


def inodes(pid: int) -> set[str]:
    """What the process has open, beyond the first three; event queues all have one name."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if int(entry.name) > 2:
            found.add(os.readlink(entry))
    return found


def test_worker_has_nothing_of_the_servers(site: Site, daemon: Daemon) -> None:
    """It is taken for its user, so it has no connection, event queue or pipe of the server."""
    site.kinit()
    site.realm.pause_kdc()
    try:
        with daemon.connect() as connection:  # root's
            connection.send(upcall(seq=9).pack())

            def workers() -> list[str]:
                return [
                    child
                    for child in daemon.children()
                    if f"Uid:\t{USER_UID}" in Path(f"/proc/{child}/status").read_text()
                ]

            assert within(3, lambda: len(workers()) == 1)
            servers = inodes(daemon.pid)
            own = inodes(int(workers()[0]))
            assert own & servers <= {"anon_inode:[eventpoll]"}
            # Its connection to lgssd, and one to the KDC.
            assert len(own) <= 3 and len(servers) >= 6
    finally:
        site.realm.resume_kdc()


def test_peer_that_gave_way_in_the_same_turn() -> None:
    """What select(2) has found ready may be gone when its turn comes."""
    listener, (ours, theirs) = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), seqpacket_pair()
    settings, log = Settings(None), Log()
    with listener, ours, theirs, selectors.DefaultSelector() as selector:
        listener.bind("")  # a name of the kernel's choice
        listener.listen()
        dispatcher = Dispatcher(settings, selector, log, lambda: None)
        serving = Records(listener, settings, dispatcher, selector, log)
        peer = Connection(ours)
        serving.peers.add(peer)
        theirs.send(upcall().pack())
        serving.peers.drop(peer)
        serving.read(peer)
        assert not len(dispatcher)


def seqpacket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


LINGER = 20


def lingering_record(connection: socket.socket) -> tuple[socket.socket, bool]:
    """Send a descriptor whose last reference takes LINGER s to drop; False if it was refused."""
    sender, sink = peers.lingering(LINGER)
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
        # Else it could drop the connection and its descriptors before we have sent both and closed
        # our own: the last reference would be ours, and it is we who would linger.
        os.kill(daemon.pid, signal.SIGSTOP)
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
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        started = time.monotonic()
        for _ in range(3):
            assert isinstance(daemon.ask(upcall().pack())[1], payload.ContextPayload)
        assert time.monotonic() - started < LINGER / 2
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
    assert time.monotonic() - started < LINGER / 2


OLD_KERNEL = [
    sys.executable,
    "-c",
    "import sys; from lgss_keyring.monitor import worker_process as w;"
    "w.refuse_descriptors = lambda end: False;"
    "from lgss_keyring.daemon import __main__; sys.argv[0:4] = ['lgssd'];"
    "__main__.main()",
]
