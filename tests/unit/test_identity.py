"""The process that touches a user's tickets cannot become root again."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import pwd
import socket
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from lgss_keyring.formats.callout import parse_request
from lgss_keyring.formats.errors import ConfigError, LgssError
from lgss_keyring.worker import identity, work
from lgss_keyring.worker.monitor_connection import MonitorConnection

UID = 61234
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody")


def in_child(work: Callable[[], object]) -> str:
    """What ``work`` gives, or its exception's words, in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = str(work())
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, "?")
        except BaseException as error:
            said = repr(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def become_and(work: Callable[[], object]) -> str:
    def whole() -> object:
        identity.become(UID, UID)
        return work()

    return in_child(whole)


def ptrace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    attach = 16
    if libc.ptrace(attach, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


@needs_root
@pytest.mark.parametrize(
    "attempt",
    [
        lambda: os.setuid(0),
        lambda: os.seteuid(0),
        lambda: os.setresuid(0, 0, 0),
        lambda: os.setgroups([0]),
        lambda: ptrace(os.getppid()),
        lambda: os.kill(os.getppid(), 9),
        lambda: os.chroot("/"),
        lambda: os.nice(-1),
    ],
    ids=["setuid", "seteuid", "setresuid", "setgroups", "ptrace", "kill", "chroot", "nice"],
)
def test_no_way_back(attempt: Callable[[], object]) -> None:
    assert become_and(attempt) in ("EPERM", "EACCES")


@needs_root
def test_what_is_roots_stays_closed(tmp_path: Path) -> None:
    """init_channel is 0200, a keytab 0600, both root's."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    for name, mode, flags in (("init_channel", 0o200, os.O_WRONLY), ("keytab", 0o600, os.O_RDONLY)):
        file = tmp_path / name
        file.write_bytes(b"")
        file.chmod(mode)
        assert become_and(functools.partial(os.open, file, flags)) == "EACCES"


@needs_root
def test_setuid_programs_give_nothing() -> None:
    """no_new_privs: what the user executes runs as the user."""
    status = become_and(lambda: Path("/proc/self/status").read_text())
    assert "NoNewPrivs:\t1\n" in status and "CapBnd:" in status
    for line in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{line}:\t0000000000000000\n" in status
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status and f"Gid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status


@needs_root
def test_what_is_left_of_root_is_noticed() -> None:
    """With securebits that keep capabilities over a change of ids."""
    pr_set_securebits, no_setuid_fixup = 28, 4

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(pr_set_securebits, no_setuid_fixup, 0, 0, 0) == 0
        identity.become(UID, UID)

    assert "would keep privileges of root" in in_child(work)


@pytest.mark.parametrize("line", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", None])
def test_capabilities_that_are_held_or_can_be_regained(tmp_path: Path, line: str | None) -> None:
    """Not those that only bound or outlive an execve(2), after no_new_privs."""
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    status = tmp_path / "status"
    status.write_text("".join(f"{name}:\t{0x80000 if name == line else 0:016x}\n" for name in names))
    descriptor = os.open(status, os.O_RDONLY)
    try:
        assert identity._capable(descriptor) == (line in ("CapPrm", "CapEff", "CapAmb"))
    finally:
        os.close(descriptor)


@needs_root
def test_entering_comes_before_the_drop_and_its_error_is_kept() -> None:
    def enter() -> None:
        raise LgssError(f"as uid {os.getuid()}")

    assert "as uid 0" in in_child(lambda: identity.become(UID, UID, enter))


@needs_root
def test_root_enters_nothing() -> None:
    """It would have nothing to drop afterwards."""
    assert "root enters no namespace" in in_child(lambda: identity.become(0, 0, lambda: None))


def test_environment_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRB5CCNAME", "FILE:/tmp/evil")
    monkeypatch.setenv("LD_PRELOAD", "/tmp/evil.so")

    def work(config: str, canonicalize: bool) -> str:
        identity.replace_environment(config, canonicalize)
        return ",".join(f"{name}={value}" for name, value in sorted(os.environ.items()))

    plain = "HOME=/,{}PATH=/sbin:/bin:/usr/sbin:/usr/bin"
    assert in_child(lambda: work("", True)) == plain.format("")
    assert in_child(lambda: work("/x.conf", True)) == plain.format("KRB5_CONFIG=/x.conf,")
    both = in_child(lambda: work("", False))
    assert both == plain.format(f"KRB5_CONFIG={identity.NAMES_AS_THEY_ARE}:/etc/krb5.conf,")
    assert Path(identity.NAMES_AS_THEY_ARE).exists()


def test_file_about_names_that_cannot_be_read_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """libkrb5 takes no notice of it, and reverse DNS would choose the server's principal."""
    monkeypatch.setattr(identity, "NAMES_AS_THEY_ARE", "/nonexistent")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        connection = MonitorConnection(theirs)
        with pytest.raises(ConfigError, match="cannot read /nonexistent"):
            work._check_names_file(connection, inside=False)
        work._check_names_file(connection, inside=True)
        assert b"that mount namespace decides" in ours.recv(1000)


@pytest.mark.parametrize(
    ("requestor", "claimed_gid", "taken"),
    [
        ((UID, 71), 0, 71),  # who asks for itself writes the callout, too
        ((UID, 71), 72, 71),
        ((UID, UID), 0, UID),
        ((0, 0), 72, 72),
        ((0, 0), 0, identity.NOGROUP),
        ((0, 71), 0, identity.NOGROUP),
    ],
)
def test_group_of_a_user_without_a_passwd_entry(
    monkeypatch: pytest.MonkeyPatch, requestor: tuple[int, int], claimed_gid: int, taken: int
) -> None:
    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    info = f"0:krb5:{UID}:{claimed_gid}::-:1:0x20000c0a80105:lustre-MDT0000-mdc:0x20000c0a80106:0"
    ids = [str(number) for number in requestor]
    request = parse_request(["create", "5", "lgssc", "x", info, *ids, "0", "0", "0"])
    assert work.primary_group(request) == (taken, False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: types.SimpleNamespace(pw_gid=73))
    assert work.primary_group(request) == (73, True)


def orphan(work: Callable[[int], object]) -> str:
    """What ``work`` gives in a process whose parent, the pid that it is called with, has ended; empty
    if it ends without giving anything."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        own = os.getpid()
        try:
            if os.fork() == 0:
                while os.getppid() == own:
                    time.sleep(0.001)
                os.write(writer, str(work(own)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(parent, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def test_a_worker_whose_parent_is_gone_ends() -> None:
    """No signal comes any more from a parent that ended before the worker asked for one."""
    assert orphan(lambda parent: "goes on") == "goes on"
    assert orphan(identity.die_with) == ""
    assert in_child(lambda: identity.die_with(os.getppid())) == "None"


class FakeLibc:
    """Remembers the calls and lets some of them fail with EPERM."""

    def __init__(self, *failing: str) -> None:
        self.calls: list[str] = []
        self._failing = failing

    def _call(self, name: str) -> int:
        self.calls.append(name)
        ctypes.set_errno(errno.EPERM if name in self._failing else 0)
        return -1 if name in self._failing else 0

    def unshare(self, kind: ctypes.c_int) -> int:
        return self._call("unshare")

    def setns(self, descriptor: ctypes.c_int, kind: ctypes.c_int) -> int:
        return self._call("setns")


def test_a_pid_namespace_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the code of a container would run among the processes of this host."""
    forks: list[str] = []

    def fork() -> int:
        forks.append("fork")
        return 4711

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(identity, "_libc", FakeLibc("unshare"))
    with pytest.raises(OSError, match="unshare: Operation not permitted") as caught:
        identity.fork_hidden()
    assert caught.value.errno == errno.EPERM and not forks
    # Back in its own it must be, or it can start no thread to write to init_channel.
    monkeypatch.setattr(identity, "_libc", FakeLibc("setns"))
    with pytest.raises(OSError, match="setns: Operation not permitted") as caught:
        identity.fork_hidden()
    assert caught.value.errno == errno.EPERM and forks == ["fork"]
    monkeypatch.setattr(identity, "_libc", FakeLibc())
    assert identity.fork_hidden() == 4711


def test_a_failed_fork_leads_back_to_the_own_pid_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "fork")

    libc = FakeLibc()
    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(identity, "_libc", libc)
    with pytest.raises(BlockingIOError):
        identity.fork_hidden()
    assert libc.calls == ["unshare", "setns"]
