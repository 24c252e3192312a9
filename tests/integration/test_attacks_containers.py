"""Attacks from within containers: what their code and their root try to get of this host's."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.system.processes import Task
from lgss_keyring.worker import confinement, identity, namespaces

from .test_confinement import UID, confined, in_hidden_child
from .test_namespaces import process

pytestmark = pytest.mark.vm


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
