"""The library's tests share these: policies, security objects, a peer that speaks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring import sptlrpc
from lgss_keyring.sptlrpc import Context, SecurityObject, Target
from lgss_keyring.sptlrpc.keyring import KeyringPolicy
from lgss_keyring.system import keyrings
from tests.support import keyutils, server
from tests.support.site import LOOPBACK_NID, Site, Upcalls

from .waiting import within

TARGET = Target(LOOPBACK_NID, 1, "lgss-MDT0000-mdc", LOOPBACK_NID, "client-uuid", 1)


def policy_of(upcalls: Upcalls, **options: Any) -> KeyringPolicy:
    made = sptlrpc.create_policy("keyring", prefix=upcalls.tag, **options)
    assert isinstance(made, KeyringPolicy)
    return made


@pytest.fixture
def policy(upcalls: Upcalls) -> Iterator[KeyringPolicy]:
    policy = policy_of(upcalls)
    with policy:
        yield policy
        assert within(3, lambda: policy.alive == 0), "a context was not released"
    # Invalidated keys are collected a moment later.
    assert within(5, lambda: not living(upcalls.tag)), living(upcalls.tag)


@pytest.fixture(scope="module")
def swept() -> Iterator[None]:
    """Take away what the kernel's collector would take in five minutes: keys that were
    rejected or have expired, in root's user keyring."""
    yield
    ours = re.compile(rf" lgss(:{os.getpid()}\.|-no-rule-{os.getpid()}:)")
    lines = [line for line in Path("/proc/keys").read_text().splitlines() if ours.search(line)]
    ring = keyrings.serial_of(keyrings.USER)
    for serial in (int(line.split()[0], 16) for line in lines):
        if serial in keyrings.members(ring):
            keyrings.unlink(serial, ring)


def living(tag: str) -> list[str]:
    """Keys of this policy's that can still be found: not those that the kernel's collector
    takes when it comes by, invalidated or expired."""
    lines = [line for line in Path("/proc/keys").read_text().splitlines() if tag in line]
    return [line for line in lines if "i" not in line.split()[1] and line.split()[3] != "expd"]


@pytest.fixture
def sec(policy: KeyringPolicy) -> Iterator[SecurityObject]:
    with policy.create_sec(TARGET, "krb5p") as sec:
        yield sec


def exists(key: int) -> bool:
    try:
        keyutils.describe_key(key)
    except keyutils.Error:
        return False
    return True


class Peer:
    """The message server in a process of its own, and connections to it."""

    def __init__(self, site: Site) -> None:
        directory = site.directory / f"peer-{time.monotonic_ns()}"
        directory.mkdir()
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.support.server"]
        command += ["--keytab", str(site.population.server_keytab), "--directory", str(directory)]
        env = {**os.environ, **site.realm.env}
        self._process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = re.fullmatch(r"listening on (\d+) (\d+)\n", self._process.stdout.readline())
        assert found
        self.port, self._messages = int(found[1]), int(found[2])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._messages), 10)

    def ask(
        self, context: Context, head: dict[str, Any], *blobs: bytes
    ) -> tuple[dict[str, Any], list[bytes]]:
        with self.connect() as connection:
            names = {"handle": context.handle.hex(), "flavor": str(context.flavor)}
            server.send(connection, {**names, **head}, *blobs)
            return server.receive(connection)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def peer(site: Site) -> Iterator[Peer]:
    peer = Peer(site)
    yield peer
    peer.close()


@pytest.fixture
def talking(site: Site, peer: Peer) -> Iterator[KeyringPolicy]:
    """A policy whose contexts the peer has, too."""
    with site.upcalls({"rpcsec_gss": {"port": peer.port}}) as upcalls:
        policy = policy_of(upcalls)
        with policy:
            yield policy
        assert within(3, lambda: policy.alive == 0)


def in_user(uid: int, work: Callable[[], Any], session: bool = True, gid: int | None = None) -> Any:
    """What ``work`` gives (JSON), in a process of ``uid`` with a new session keyring."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(*[uid if gid is None else gid] * 3)
            os.setresuid(uid, uid, uid)
            if session:
                keyutils.join_session_keyring()
            said = json.dumps({"result": work()})
        except BaseException:
            said = json.dumps({"error": traceback.format_exc()})
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "error" not in answer, answer["error"]
    return answer["result"]
