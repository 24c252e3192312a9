"""The process that touches a user's tickets cannot become root again."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

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
