"""The namespaces in which a request's credentials live, where the kernel refuses or they change."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator

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
