"""The policy `pipe`, with lgssd and with what stands in for it."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time

import pytest

from lgss_keyring import sptlrpc
from lgss_keyring.formats import payload, pipe
from lgss_keyring.formats.errors import LgssError
from tests.support.site import STRANGER_UID, USER_UID, Site

from .lgssd_process import TARGET, Daemon, upcall
from .library import Peer, in_user
from .waiting import pace


def test_policy_after_fork(site: Site, daemon: Daemon) -> None:
    """The child has a connection of its own: on one they would take each other's answers."""
    for uid in (USER_UID, STRANGER_UID):
        site.kinit(uid)
    with sptlrpc.create_policy("pipe", path=daemon.path) as policy, policy.create_sec(TARGET, "krb5i") as sec:
        sec.release_ctx(sec.lookup_ctx(USER_UID).refresh(10))

        def child() -> list[str]:
            found = []
            for _ in range(3):
                with sec.lookup_ctx(STRANGER_UID) as context:
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
        for uid in range(USER_UID + 766, USER_UID + 775):  # 288
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
                assert caught.value.errno == errno.ETIMEDOUT and pace.met(time.monotonic() - started, 1.5)
    finally:
        listener.close()
        os.unlink(path)
