"""Attacks from within containers: what their code and their root try to get of this host's."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from lgss_keyring.system.processes import Task
from lgss_keyring.worker import confinement, identity, namespaces
from tests.support import keyutils
from tests.support.requestor import Answer, ask
from tests.support.site import USER_UID, Site, Upcalls, machine_callout, user_callout

from .answers import established
from .test_confinement import UID, confined, in_hidden_child
from .test_namespaces import process

pytestmark = pytest.mark.vm

MS_REC, MS_PRIVATE = 0x4000, 1 << 18


def mount_point_v2() -> Path:
    """Where the hierarchy of version 2 is mounted."""
    return next(Path(os.fsdecode(m.folder)) for m in confinement.mounts_of_cgroups() if not m.controllers)


@contextlib.contextmanager
def cgroup_that_forges_a_line(point: Path, victim: str) -> Iterator[Path]:
    """A cgroup in whose path, as /proc/PID/cgroup shows it, a line for ``victim`` seems to stand."""
    outer = Path(tempfile.mkdtemp(prefix="lgss-", dir=point))
    inner = outer / "x\r0::" / victim
    try:
        inner.mkdir(parents=True)
        yield inner
    finally:
        for pid in (inner / "cgroup.procs").read_text().split():
            (point / "cgroup.procs").write_text(pid)
        for folder in (inner, inner.parent, outer):
            folder.rmdir()


def test_name_of_a_cgroup_leads_no_worker_into_another() -> None:
    """mkdir(2) takes a carriage return there, and a user has a cgroup of theirs to make folders in."""

    def work() -> bytes:
        confinement.confine_like(Task(pid), UID)
        return Path("/proc/self/cgroup").read_bytes().split(b"\n")[-2]

    point = mount_point_v2()
    victim = Path(tempfile.mkdtemp(prefix="lgss-victim-", dir=point))
    try:
        with confined() as pid, cgroup_that_forges_a_line(point, victim.name) as folder:
            (folder / "cgroup.procs").write_text(str(pid))
            said = in_hidden_child(work)
            assert f"\\r0::/{victim.name}" in said, said
    finally:
        victim.rmdir()


IPC_RMID, IPC_CREAT = 0, 0o1000
SHARED_MEMORY_KEY = 0x1655AD


@contextlib.contextmanager
def shared_memory_of_a_user() -> Iterator[int]:
    """A segment of System V shared memory out here, which is ``UID``'s alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setresuid(UID, UID, UID)
        os.write(writer, b"%d" % libc.shmget(SHARED_MEMORY_KEY, 4096, IPC_CREAT | 0o600))
        os._exit(0)
    os.waitpid(pid, 0)
    segment = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    assert segment >= 0
    try:
        yield segment
    finally:
        assert libc.shmctl(segment, IPC_RMID, None) == 0


def test_code_of_a_container_finds_no_shared_memory_of_this_host() -> None:
    """Root of a container without a user namespace can be any uid, that of a data base out here, too."""

    def attack() -> int:
        found = namespaces.RequestorNamespaces(Task(pid))
        identity.become(UID, UID, found.enter)
        return ctypes.CDLL(None).shmget(SHARED_MEMORY_KEY, 0, 0o600)  # type: ignore[no-any-return]

    with (
        shared_memory_of_a_user(),
        process("--mount", "--ipc", uid=0, then_as=UID) as pid,
    ):
        assert in_hidden_child(attack) == "-1"


def ask_from_a_container(uid: int, description: str, callout: str) -> Answer:
    """The answer to a process that has become ``uid`` in a mount namespace of its own, without any user
    namespace, as root of a container can."""
    libc = ctypes.CDLL(None, use_errno=True)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            assert libc.unshare(namespaces.CLONE_NEWNS) == 0
            assert libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None) == 0
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            keyutils.join_session_keyring()
            os.write(writer, json.dumps(asdict(ask(description, callout, wait=3))).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return Answer(**json.loads(said))


@pytest.mark.parametrize("of_this_host", [False, True])
def test_container_names_no_process_of_this_host(site: Site, upcalls: Upcalls, of_this_host: bool) -> None:
    """Field 10 of a `user` key is the requestor's text: with a process of this host, or with none, it
    would get the tickets that this uid has out here."""
    site.kinit()
    with process(uid=USER_UID) as host:
        callout = user_callout(pid=host if of_this_host else 0)
        answer = ask_from_a_container(USER_UID, upcalls.name(), callout)
        if of_this_host:
            assert answer.error == errno.EACCES
            (event,) = upcalls.failures()
            assert event["LGSS_ERROR"] == "namespace"
        else:
            # Its own mount namespace is entered, where it has the same tickets in this test.
            established(answer)
            assert any("credentials in mnt of process" in event["message"] for event in upcalls.log())


def test_container_gets_no_machine_credential_of_this_host(upcalls: Upcalls) -> None:
    answer = ask_from_a_container(0, upcalls.name(), machine_callout(pid=os.getpid()))
    assert answer.error == errno.EACCES
