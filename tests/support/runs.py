"""What a run of demo, bench or tests makes that root's upcalls use: folders, and rules.

A rule that outlives its run (kill -9) still leads root to a program.  If that lay below /tmp, those
who made its path again after a reboot would run as root.  So all that a rule leads to lies in
:data:`FOLDER`, where only root can write and which no reboot empties; the names of rules and
folders carry the run that they belong to; and each run first removes what dead ones have left.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

FOLDER = Path(os.environ.get("LGSS_TESTS_FOLDER", "/var/lib/lgss-keyring-tests"))
RULES = Path("/etc/request-key.d")
RULE_PREFIX = "lgss-test-"
"""What the names of all rules of tests, demo and bench begin with."""


class TestingError(Exception):
    """Something that tests, demo or bench need is not as they need it."""

    __test__ = False


SHARES, SHARE = 16, 1000
"""How many runs at once have uids of their own, and how far these are apart."""
_held: list[socket.socket] = []


def first_uid() -> int:
    """The uid of this run's main user; processes that it starts have the same.

    The kernel's quota of keys and a limit of processes hold for a uid: two runs at once would take
    them from each other.  A name of a socket is held as long as a process of the run lives.
    """
    share = os.environ.get("LGSS_TESTS_SHARE")
    if share is None:
        share = "0"
        for number in range(SHARES):
            if holder := _take(f"uids-{number}"):
                _held.append(holder)
                share = str(number)
                break
        os.environ["LGSS_TESTS_SHARE"] = share
    # 65534 is nobody's: what the kernel cannot name is shown as of this uid.
    first = 61234 if int(share) < 4 else 70234
    return first + SHARE * int(share)


def _take(name: str) -> socket.socket | None:
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0lgss-keyring-tests-{name}")
    except OSError:
        holder.close()
        return None
    return holder


@contextmanager
def alone(name: str, seconds: float) -> Iterator[bool]:
    """Be the only run that does what ``name`` says; waits for another one so long, and gives whether
    that has ended."""
    end = time.monotonic() + seconds
    while not (holder := _take(name)) and time.monotonic() < end:
        time.sleep(0.1)
    try:
        yield holder is not None
    finally:
        if holder:
            holder.close()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def _start_time(pid: int) -> str:
    """When a process started, in ticks after boot: proc_pid_stat(5), field 22; empty if it is gone
    or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return fields[19] if fields[0] not in "ZX" else ""


def tag() -> str:
    """The name of this run: no other process has it, not in another boot either."""
    return f"{os.getpid()}-{_start_time(os.getpid())}-{_boot()}"


def is_dead(path: Path) -> bool:
    """Whether the run of a file or folder named ``...-PID-START-BOOT-...`` has ended.  A checkout
    of November 2026 or before gave its rules other names; their pattern has the process."""
    words = path.name.split("-")
    for pid, start, boot in zip(words, words[1:], words[2:], strict=False):
        if pid.isdecimal() and start.isdecimal() and len(boot) == 8:
            return boot != _boot() or _start_time(int(pid)) != start
    with suppress(OSError):
        pattern = re.search(r"\tlgss:(\d+)\.\d+:", path.read_text())
        return pattern is not None and not _start_time(int(pattern[1]))
    return False


def folder(purpose: str) -> Path:
    """A new folder of this run, mode 0755, for what root's upcalls read or run; a run of an ordinary
    user, which cannot make rules, gets one in the usual place for temporary files."""
    if os.geteuid() != 0:
        made = Path(tempfile.mkdtemp(prefix=f"lgss-{purpose}-"))
    else:
        made = _below_folder(f"{purpose}-{tag()}-")
    made.chmod(0o755)
    return made


def _below_folder(prefix: str) -> Path:
    while True:
        FOLDER.mkdir(mode=0o755, exist_ok=True)
        refuse_writable(FOLDER)
        # Another run may remove it just now, with its last folder.
        with suppress(FileNotFoundError):
            return Path(tempfile.mkdtemp(prefix=prefix, dir=FOLDER))


def remove(made: Path) -> None:
    """Remove such a folder, and the one for all of them with the last."""
    shutil.rmtree(made, ignore_errors=True)
    with suppress(OSError):
        FOLDER.rmdir()


def refuse_writable(path: Path) -> None:
    """Refuse to let root run what others may write, or may make again after a reboot."""
    for each in (path, *path.parents):
        with suppress(FileNotFoundError):
            status = each.stat()
            shared = status.st_mode & 0o002 or (status.st_mode & 0o020 and status.st_gid != 0)
            if status.st_uid not in (0, os.geteuid()) or shared:
                mode = stat.S_IMODE(status.st_mode)
                raise TestingError(
                    f"a rule must not lead to {path}: {each} may be written by others "
                    f"(uid {status.st_uid}, {mode:04o})"
                )


def remove_dead() -> list[str]:
    """Remove the rules and folders of dead runs, the rules first; gives what was removed."""
    if os.geteuid() != 0:
        return []
    found = [path for path in RULES.glob(f"{RULE_PREFIX}*") if is_dead(path)]
    found += [path for path in FOLDER.glob("*") if is_dead(path)]
    removed = []
    for path in found:
        # Another run may do the same at this moment.
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(f"removed {path}, which a run that has ended left behind")
    return removed


def begin() -> None:
    """Begin a run of demo, bench or tests: let nothing of it stay, however it ends but by SIGKILL.

    SIGTERM raises KeyboardInterrupt in this process, as SIGINT does, and not in those that it forks.
    An exception in the middle of making a rule leaves one that no variable names, so what carries
    the name of this run is removed at its end.
    """
    atexit.register(_remove_own)
    own = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        # Once: the clean-up that follows is not to be interrupted.
        signal.signal(number, signal.SIG_IGN if os.getpid() == own else signal.SIG_DFL)
        if os.getpid() == own:
            raise KeyboardInterrupt
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, handle)


def _remove_own() -> None:
    for rule in RULES.glob(f"{RULE_PREFIX}{tag()}-*"):
        rule.unlink(missing_ok=True)
    for made in FOLDER.glob(f"*-{tag()}-*"):
        remove(made)
