"""Users whose acceptor or KDC is silent, and one who comes later."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.formats import payload
from tests.support.site import HOST, LOOPBACK_NID, USER_UID, Site

from .lgssd_process import Daemon, upcall
from .library import Peer, in_user
from .waiting import pace, within

GREEDY = (USER_UID + 136, USER_UID + 137, USER_UID + 138)
FOURTH = USER_UID + 139
SILENT_NID = LOOPBACK_NID + 1
CONNECTIONS, RECORDS = 8, 20


@pytest.fixture
def silent_daemon(site: Site, peer: Peer) -> Iterator[Daemon]:
    """An lgssd for which the acceptor at 127.0.0.2 accepts connections and says nothing."""
    more: dict[str, dict[str, Any]] = {
        "rpcsec_gss": {"reply_timeout": 60, "connect_timeout": 10},
        "hosts": {"127.0.0.2": HOST},
    }
    with socket.create_server(("127.0.0.2", peer.port), backlog=256):
        daemon = Daemon(site, peer.port, more=more, timeout=60)
        yield daemon
        daemon.close()


def hold_all(daemon: Daemon, uid: int) -> int:
    """A process of ``uid`` that asks for far more than its share, at the silent acceptor."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            connections = [daemon.connect() for _ in range(CONNECTIONS)]
            for seq in range(1, RECORDS + 1):
                for connection in connections:
                    connection.settimeout(0)
                    try:
                        connection.send(upcall(uid, seq=seq, nid=SILENT_NID).pack())
                    except BlockingIOError:
                        pass  # its queue is full
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 1)
    os.close(reader)
    return pid


def seconds_of_a_context(daemon: Daemon, uid: int) -> float:
    """How long lgssd takes for a context of ``uid`` with the acceptor that answers."""
    started = time.monotonic()
    answer = daemon.ask(upcall(uid).pack())[1]
    assert isinstance(answer, payload.ContextPayload)
    return time.monotonic() - started


def workers_of(daemon: Daemon, uid: int) -> int:
    """How many workers lgssd has that are ``uid``."""
    count = 0
    for child in daemon.children():
        try:
            count += f"Uid:\t{uid}\t" in Path(f"/proc/{child}/status").read_text()
        except OSError:
            pass  # it has ended meanwhile
    return count


@pytest.mark.parametrize("silent", ["acceptor", "KDC"])
def test_three_greedy_users_and_a_fourth(site: Site, silent_daemon: Daemon, silent: str) -> None:
    """The fourth is answered within 3 s, again and again, while the three hold what they can."""
    for uid in (*GREEDY, FOURTH):
        site.kinit(uid)
    pids = []
    in_user(FOURTH, lambda: seconds_of_a_context(silent_daemon, FOURTH))  # with a ticket for the acceptor
    if silent == "KDC":
        site.realm.pause_kdc()
    try:
        for uid in GREEDY:
            pids.append(hold_all(silent_daemon, uid))
        # A silent acceptor keeps no worker from other requests, and a silent KDC does.
        most = 4 if silent == "KDC" else 1
        assert within(5, lambda: all(workers_of(silent_daemon, uid) >= most for uid in GREEDY))
        took = in_user(FOURTH, lambda: [seconds_of_a_context(silent_daemon, FOURTH) for _ in range(5)])
        print("the fourth user's answers took", [f"{each:.2f} s" for each in took])
        assert pace.met(max(took), 3)
        assert max(workers_of(silent_daemon, uid) for uid in GREEDY) <= 4
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if silent == "KDC":
            site.realm.resume_kdc()
