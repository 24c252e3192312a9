"""A worker goes into the cgroups of the process that it serves, with real cgroups."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lgss_keyring.system.processes import Task
from lgss_keyring.worker import confinement, identity, limits
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, Upcalls, user_callout

from .test_namespaces import process
from .waiting import upcall_processes, within, workers_in

pytestmark = pytest.mark.vm

UID = USER_UID + 1


def mount_points() -> list[Path]:
    """Of each hierarchy in which a process can be put into a new folder at once."""
    found = {}
    for mount in confinement.mounts_of_cgroups():
        if mount.root == b"/" and not mount.controllers & {b"cpuset"}:
            found[mount.controllers] = Path(os.fsdecode(mount.folder))
    return list(found.values())


@contextlib.contextmanager
def cgroups() -> Iterator[list[Path]]:
    """A folder of our own in each hierarchy."""
    folders = [Path(tempfile.mkdtemp(prefix="lgss-", dir=point)) for point in mount_points()]
    try:
        yield folders
    finally:
        for folder in folders:
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (folder.parent / "cgroup.procs").write_text(pid)
            folder.rmdir()


@contextlib.contextmanager
def confined() -> Iterator[int]:
    """A process of a user's, in cgroups and with limits of its own."""
    with (
        cgroups() as folders,
        subprocess.Popen(
            ["prlimit", "--nofile=77:99", "sleep", "600"], user=UID, group=UID, extra_groups=[]
        ) as sleep,
    ):
        try:
            for folder in folders:
                (folder / "cgroup.procs").write_text(str(sleep.pid))
                if (folder / "pids.max").exists():
                    (folder / "pids.max").write_text("6")
            assert within(3, lambda: Path(f"/proc/{sleep.pid}/cmdline").read_bytes().startswith(b"sleep"))
            yield sleep.pid
        finally:
            sleep.kill()
            sleep.wait()


def in_hidden_child(work: Callable[[], object]) -> str:
    """What ``work`` gives in a process of its own, process 1 of a pid namespace."""
    reader, writer = os.pipe()
    pid = identity.fork_hidden()
    if pid == 0:
        try:
            # The process that it takes its limit of descriptors from has fewer than a test.
            os.dup2(writer, 3)
            os.closerange(4, 10000)
            os.write(3, str(work()).encode())
        except BaseException as error:
            os.write(3, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def test_worker_has_the_cgroups_and_the_limits_of_the_process() -> None:
    def work() -> str:
        confinement.bound()
        confinement.confine_like(Task(pid), UID)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        assert resource.getrlimit(resource.RLIMIT_NPROC)[0] <= limits.CONTAINER_PROCESSES + 1
        return f"{resource.getrlimit(resource.RLIMIT_NOFILE)} {Path('/proc/self/cgroup').read_text()}"

    with confined() as pid:
        theirs = Path(f"/proc/{pid}/cgroup").read_text()
        assert "lgss-" in theirs
        assert in_hidden_child(work) == f"(77, 99) {theirs}"


def test_code_of_a_container_starts_few_processes() -> None:
    """By the limit of the cgroup where it has one, and else by one of ours."""

    def fork_all() -> int:
        confinement.confine_like(Task(pid), UID)
        identity.become(UID, UID)
        for count in range(100):
            try:
                child = os.fork()
            except BlockingIOError:
                return count
            if child == 0:
                time.sleep(600)
        return -1

    with confined() as pid:
        assert 0 < int(in_hidden_child(fork_all)) <= 6
        for folder in mount_points():
            for limit in folder.glob("lgss-*/pids.max"):
                if str(pid) in (limit.parent / "cgroup.procs").read_text().split():
                    limit.write_text("max")
        assert 6 < int(in_hidden_child(fork_all)) <= limits.CONTAINER_PROCESSES


def test_worker_that_waits_in_a_container_is_in_its_cgroups(site: Site, upcalls: Upcalls) -> None:
    """Its krb5.conf is a FIFO, so the worker waits in there as the user."""
    fifo = site.directory / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o644)
    script = f"mount --bind {fifo} {site.realm.krb5_conf}\nulimit -n 88\n"
    try:
        with (
            process("--mount", script=script, uid=0, then_as=USER_UID) as pid,
            cgroups() as folders,
            Requestor(USER_UID) as user,
        ):
            for folder in folders:
                (folder / "cgroup.procs").write_text(str(pid))
            inside = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            assert user.ask(upcalls.name(), user_callout(pid=pid), wait=0).error == 0

            def entered() -> list[Task]:
                return [Task(each) for each in workers_in(site, inside)]

            assert within(3, lambda: len(entered()) == 1)
            (worker,) = entered()
            theirs = Path(f"/proc/{pid}/cgroup").read_bytes()
            assert theirs.count(b"/lgss-") == len(folders) and worker.read("cgroup") == theirs
            assert b"88                   88" in worker.read("limits")
            for each in upcall_processes(site):
                os.kill(each, 9)
            assert within(3, lambda: not upcall_processes(site))
    finally:
        fifo.unlink()
