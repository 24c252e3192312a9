"""What a run of demo, bench or tests makes that root's upcalls use: folders, and rules.

A rule that outlives its run (kill -9) still leads root to a program.  If that lay below /tmp, those
who made its path again after a reboot would run as root.  So all that a rule leads to lies in
:data:`FOLDER`, where only root can write and which no reboot empties; the names of rules and
folders carry the run that they belong to; and each run first removes what dead ones have left.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

FOLDER = Path(os.environ.get("LGSS_TESTS_FOLDER", "/var/lib/lgss-keyring-tests"))
RULES = Path("/etc/request-key.d")
RULE_PREFIX = "lgss-test-"
"""What the names of all rules of tests, demo and bench begin with."""


class TestingError(Exception):
    """Something that tests, demo or bench need is not as they need it."""

    __test__ = False


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
    """Whether the run of a file or folder named ``...-PID-START-BOOT-...`` has ended.  What has no
    such name was made by a checkout of November 2026 or before: no run lasts a day."""
    words = path.name.split("-")
    for pid, start, boot in zip(words, words[1:], words[2:], strict=False):
        if pid.isdecimal() and start.isdecimal() and len(boot) == 8:
            return boot != _boot() or _start_time(int(pid)) != start
    with suppress(OSError):
        return time.time() - path.lstat().st_mtime > 24 * 3600
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
    """Begin a run of demo or bench: remove and say what dead runs have left, and end by SIGTERM as
    by SIGINT, so that what is made is taken away."""
    for line in remove_dead():
        print(line, file=sys.stderr, flush=True)
    end_by_exception()


def end_by_exception() -> None:
    """Let SIGTERM raise KeyboardInterrupt in this process, not in those that it forks."""
    own = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        # Once: the clean-up that follows is not to be interrupted.
        signal.signal(number, signal.SIG_IGN if os.getpid() == own else signal.SIG_DFL)
        if os.getpid() == own:
            raise KeyboardInterrupt
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, handle)
