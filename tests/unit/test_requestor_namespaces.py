"""The namespaces in which a request's credentials live, where the kernel refuses or they change."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import types
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from lgss_keyring.formats.callout import UpcallRequest, parse_request
from lgss_keyring.formats.errors import Kind, RefusedError
from lgss_keyring.system.processes import Task
from lgss_keyring.worker import namespaces
from lgss_keyring.worker.namespaces import RequestorNamespaces

UID = 61234 if os.geteuid() == 0 else os.geteuid()
LATER = 1 << 60
"""A start time that no process has yet."""


class FakeLibc:
    """A kernel that answers unshare(2) and setns(2) with these errnos; 0 is success."""

    def __init__(self, unshare: int = 0, setns: int = 0) -> None:
        self._unshare, self._setns = unshare, setns
        self.entered: list[int] = []

    def unshare(self, kinds: ctypes.c_int) -> int:
        ctypes.set_errno(self._unshare)
        return -1 if self._unshare else 0

    def setns(self, descriptor: ctypes.c_int, kind: ctypes.c_int) -> int:
        self.entered.append(kind.value)
        ctypes.set_errno(self._setns)
        return -1 if self._setns else 0


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """A worker lets the kernel close what it holds of a task when it ends."""
    yield
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith(("/proc/", "mnt:", "net:")):
                os.close(int(number))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task is taken for one in another mount namespace than ours."""
    monkeypatch.setattr(namespaces, "_is_ours", lambda namespace, kind: kind != "mnt")


@pytest.fixture
def task_pid() -> Iterator[int]:
    """A process of an ordinary user's."""
    user = UID if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as process:
        yield process.pid
        process.kill()


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("kernel", "words", "entered"),
    [
        (FakeLibc(unshare=errno.EPERM), "unshare: Operation not permitted", []),
        (FakeLibc(setns=errno.EPERM), "setns: Operation not permitted", [namespaces.CLONE_NEWNS]),
        (FakeLibc(unshare=errno.EINVAL), "", [namespaces.CLONE_NEWNS]),
        (FakeLibc(), "", [namespaces.CLONE_NEWNS]),
    ],
    ids=["no System V IPC of its own", "not entered", "a kernel without such namespaces", "entered"],
)
def test_namespaces_that_are_not_entered_are_refused(
    monkeypatch: pytest.MonkeyPatch, elsewhere: None, kernel: FakeLibc, words: str, entered: list[int]
) -> None:
    """Else the credentials of this host would be looked for.  Whatever happens, nothing of the task
    is held afterwards."""
    found = RequestorNamespaces(Task(os.getpid()))
    held = [found.task._folder, *found._descriptors.values()]
    assert found.different == {"mnt"} and all(is_open(each) for each in held)
    monkeypatch.setattr(namespaces, "_libc", kernel)
    if words:
        with pytest.raises(RefusedError, match=words) as caught:
            found.enter()
        assert caught.value.kind == Kind.NAMESPACE
    else:
        found.enter()
    assert kernel.entered == entered and not any(is_open(each) for each in held)


def request(pid: int) -> UpcallRequest:
    info = f"0:krb5:{UID}:{UID}::-:1:0x20000c0a80105:lustre-MDT0000-mdc:0x20000c0a80106:{pid}"
    return parse_request(["create", "5", "lgssc", "x", info, str(UID), str(UID), "0", "0", "0"])


def test_a_process_that_changes_its_mount_namespace_meanwhile_is_refused(
    monkeypatch: pytest.MonkeyPatch, elsewhere: None, task_pid: int
) -> None:
    """The worker was forked for our namespaces: it is not alone in a pid namespace, and sees our
    processes."""
    with pytest.raises(RefusedError, match="it has changed its mount namespace meanwhile"):
        namespaces.find(request(task_pid), LATER)
    # One that was forked for another namespace is process 1 of its own.
    monkeypatch.setattr(os, "getpid", lambda: 1)
    found = namespaces.find(request(task_pid), LATER)
    assert found is not None and found.different == {"mnt"}


class Odd(Task):
    """A task of whose /proc folder some files cannot be looked at: an errno for each of them."""

    errors: dict[str, int]
    exits = True
    ended = False

    def _look(self, name: str) -> None:
        if name in self.errors:
            raise OSError(self.errors[name], os.strerror(self.errors[name]))

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        self._look(name)
        return super().open(name, flags)

    def stat_of(self, name: str) -> os.stat_result:
        self._look(name)
        return super().stat_of(name)

    def is_exiting(self) -> bool:
        self._look("stat")
        return self.exits

    def has_ended(self) -> bool:
        return self.ended


def odd(errors: dict[str, int], *, exits: bool = True, ended: bool = False) -> Odd:
    task = Odd(os.getpid())
    task.errors, task.exits, task.ended = errors, exits, ended
    return task


@pytest.mark.parametrize(
    ("number", "words", "told"),
    [
        (errno.ESRCH, "it has ended", errno.ESRCH),
        (errno.ENOENT, "it has ended", errno.ESRCH),
        (errno.EACCES, "not even root may look into it (Permission denied)", errno.EACCES),
    ],
)
def test_a_process_that_cannot_be_looked_at_is_refused(number: int, words: str, told: int) -> None:
    """Whatever of it: whose it is and where it lives is not known then."""

    def attempts(name: str) -> Callable[[], object]:
        if name.startswith("ns/") and name != "ns/user":
            return lambda: RequestorNamespaces(odd({name: number}))
        found = RequestorNamespaces(odd({name: number}))
        return found.check_initial if name == "ns/user" else lambda: found.check_owner(os.getuid(), LATER)

    for name in ("ns/mnt", "ns/net", "ns/user", "status", "stat"):
        with pytest.raises(RefusedError) as caught:
            attempts(name)()
        assert words in caught.value.reason and caught.value.errno == told, name


@pytest.mark.parametrize(
    ("errors", "exits", "ended", "lost"),
    [
        ({"ns/mnt": errno.ENOENT}, True, False, True),
        ({"ns/net": errno.ENOENT}, True, False, True),
        ({}, True, False, False),
        ({"ns/mnt": errno.ENOENT}, False, False, False),
        ({"ns/mnt": errno.ENOENT}, True, True, False),
        ({"ns/mnt": errno.EACCES}, True, False, False),
        ({"stat": errno.ESRCH}, True, False, False),
    ],
    ids=["mount", "network", "none yet", "not exiting", "ended", "not to be seen", "gone"],
)
def test_a_process_that_has_lost_its_namespaces(
    errors: dict[str, int], exits: bool, ended: bool, lost: bool
) -> None:
    task = odd(errors, exits=exits, ended=ended)
    assert namespaces._has_lost_namespaces(task, request(os.getpid())) == lost
    for_machine = types.SimpleNamespace(is_machine=True)
    assert not namespaces._has_lost_namespaces(task, cast(UpcallRequest, for_machine))
