"""Cgroups and limits of a worker: what is read of /proc, and the bounds of each worker."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from lgss_keyring.formats.errors import RefusedError
from lgss_keyring.system import processes
from lgss_keyring.system.processes import Task
from lgss_keyring.worker import confinement, limits

from .test_identity import in_child


def test_cgroups_by_hierarchy() -> None:
    text = b"12:cpu,cpuacct:/a\n3:name=systemd:/b:c d\n0::/user.slice/x\n"
    assert processes.cgroups_of(text) == {
        b"cpu,cpuacct": b"/a",
        b"name=systemd": b"/b:c d",
        b"": b"/user.slice/x",
    }


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        (b"/a/b", b"/", b"/a/b"),
        (b"/a/b", b"/a", b"/b"),
        (b"/a", b"/a", b""),
        (b"/ab", b"/a", None),
        (b"/../x", b"/", None),
        (b"/", b"/a", None),
    ],
)
def test_paths_below_a_mount(path: bytes, root: bytes, below: bytes | None) -> None:
    assert confinement._below(path, root) == below


def test_paths_of_mountinfo() -> None:
    assert confinement._unescaped(rb"/a\040b\134040") == rb"/a b\040"


def test_cgroup_file_systems_the_last_mounted_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is mounted over another hides it."""
    info = tmp_path / "mountinfo"
    info.write_bytes(
        b"20 1 0:19 / /proc rw shared:5 - proc proc rw\n"
        b"30 24 0:26 / /old rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
        b"31 24 0:27 /a\\040b /cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        b"32 24 0:28 / /new rw shared:10 master:3 - cgroup2 none rw\n"
    )
    monkeypatch.setattr(confinement, "open", lambda name, mode: info.open(mode), raising=False)
    assert [(each.folder, each.root) for each in confinement.mounts_of_cgroups()] == [
        (b"/new", b"/"),
        (b"/cpu", b"/a b"),
        (b"/old", b"/"),
    ]
    controllers = [each.controllers for each in confinement.mounts_of_cgroups()]
    assert controllers == [frozenset(), {b"rw", b"cpu", b"cpuacct"}, frozenset()]


def test_worker_has_a_bound_of_memory_and_no_core() -> None:
    def work() -> str:
        confinement.bound()
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        try:
            bytearray(limits.DATA_BYTES)
        except MemoryError:
            return "no memory"
        return "no bound"

    assert in_child(work) == "no memory"


def test_a_lower_bound_stays() -> None:
    def work() -> int:
        resource.setrlimit(resource.RLIMIT_DATA, (limits.DATA_BYTES // 2, limits.DATA_BYTES * 2))
        confinement.bound()
        assert resource.getrlimit(resource.RLIMIT_DATA)[1] == limits.DATA_BYTES
        return resource.getrlimit(resource.RLIMIT_DATA)[0] * 2

    assert in_child(work) == str(limits.DATA_BYTES)


def test_limits_are_the_tasks_if_they_are_lower() -> None:
    def work() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (640, 1280))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        ours = Task(os.getpid()).read("limits")
        if os.fork() == 0:
            theirs = (
                ours.replace(b"640 ", b"320 ").replace(b" 1280 ", b" 9999 ").replace(b" 1000 ", b" 2000 ")
            )

            class Served(Task):
                def read(self, name: str) -> bytes:
                    return theirs

            confinement._take_limits(Served(os.getpid()))
            limits = [
                resource.getrlimit(number) for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
            ]
            os._exit(limits != [(320, 1280), (1000, 1000)])
        return str(os.wait()[1])

    assert in_child(work) == "0"


def test_where_no_cgroup_file_system_is_mounted_the_request_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Elsewhere(Task):
        def read(self, name: str) -> bytes:
            return b"0::/elsewhere\n" if name == "cgroup" else super().read(name)

    monkeypatch.setattr(confinement, "mounts_of_cgroups", list)
    with pytest.raises(RefusedError, match="no file system of the cgroup hierarchy v2") as caught:
        confinement.confine_like(Elsewhere(os.getpid()), os.getuid())
    assert caught.value.kind == "namespace" and "containers = false" in caught.value.hint


def test_a_task_that_is_always_moved_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = iter(range(100))

    class Moving(Task):
        def read(self, name: str) -> bytes:
            return b"0::/%d\n" % next(moves) if name == "cgroup" else super().read(name)

    monkeypatch.setattr(confinement, "_join", lambda *_: None)
    with pytest.raises(RefusedError, match="moved from cgroup to cgroup"):
        confinement.confine_like(Moving(os.getpid()), os.getuid())
    assert next(moves) == limits.CGROUP_TRIES


def test_tasks_of_a_user_are_counted() -> None:
    assert confinement._tasks_of(os.getuid()) >= len(os.listdir("/proc/self/task"))
    assert confinement._tasks_of(4_000_000_000) == 0
    assert Path("/proc/self/status").exists()
