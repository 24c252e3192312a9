"""One run of tests in a copy of the checkout, in a forked process that has pytest loaded already.

The process is a session of its own with a time limit.  What it leaves behind is found by its session, by
a variable in its environment, and by its name in the paths of upcalls, which the kernel starts.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import coverage
import pytest

from tests.support import runs

from . import reporter

MARK = "LGSS_MUTANTS_TRIAL"
NOT_COPIED = (".git", ".venv", "build", "dist", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
IGNORED = ["--ignore=tests/unit/test_mutants.py"]
"""It tests nothing of the package, and would begin runs in a run."""
# Short: tests bind sockets below it, whose paths have at most 107 bytes (unix(7)).
TEMPORARY = "lgss-m-"
END_SECONDS = 20.0
"""For a run's own clean-up, when it is ended."""

_PR_SET_PDEATHSIG = 1


class Plan(NamedTuple):
    """Which tests: files, and of them the tests ``only``, in this order (none: all of them).

    ``limit`` and ``each`` are seconds for the run and for one test.  With ``stop`` the first failure
    ends it.  ``measure`` notes which lines of the package each test reaches in pytest's process.
    """

    files: Sequence[str]
    only: Sequence[str] = ()
    limit: float = 3600.0
    each: float = 120.0
    stop: bool = True
    measure: bool = False


class Outcome(NamedTuple):
    """What came of it: ``failed`` are tests, or what else went wrong; ``seconds`` are those of each
    test, ``reached`` the tests by file and line."""

    failed: list[str]
    seconds: dict[str, float]
    reached: dict[str, dict[str, list[str]]]
    took: float
    output: str


class Copy:
    """A copy of the checkout where one thing runs at a time; ``close`` removes it."""

    def __init__(self, root: Path) -> None:
        self.directory = runs.folder("mutants")
        self.checkout = self.directory / "checkout"
        # As open as /tmp: tests let other users write below it.
        self.temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{runs.tag()}-"))
        self.temporary.chmod(0o1777)
        shutil.copytree(root, self.checkout, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (self.checkout / ".venv").symlink_to(root / ".venv")

    def write(self, path: str, source: str) -> None:
        """Change a module.  Python takes a compiled one for up to date that is of the same second
        and length, so that goes."""
        file = self.checkout / path
        file.write_text(source)
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            compiled.unlink()

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        runs.remove(self.directory)


def remove_dead() -> None:
    """Remove what runs that were killed have left."""
    runs.remove_dead()
    for path in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        if runs.is_dead(path):
            shutil.rmtree(path, ignore_errors=True)


class Trial:
    """A run that has begun."""

    def __init__(self, copy: Copy, plan: Plan) -> None:
        self._copy = copy
        self._result = copy.directory / "result"
        self._output = copy.directory / "output"
        self._result.unlink(missing_ok=True)
        self._begun = time.monotonic()
        self._end = self._begun + plan.limit
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(copy, plan, self._result, self._output)
        self._tag = f"-{self.pid}-{_start(self.pid)}-"

    def outcome(self) -> Outcome | None:
        """What came of it; None as long as it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            return self._ended(os.waitstatus_to_exitcode(status))
        if time.monotonic() > self._end:
            self.end()
            return self._read(["the time limit"])
        return None

    def end(self) -> None:
        """Let it clean up, then kill what is left of it."""
        until = time.monotonic() + END_SECONDS
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGTERM)
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > until:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    break
                time.sleep(0.05)
        self._sweep()

    def _ended(self, status: int) -> Outcome:
        self._sweep()
        return self._read([] if self._result.exists() else [f"pytest's process ended with status {status}"])

    def _read(self, failed: list[str]) -> Outcome:
        took = time.monotonic() - self._begun
        output = self._output.read_text(errors="replace") if self._output.exists() else ""
        if failed:
            return Outcome(failed, {}, {}, took, output)
        result = json.loads(self._result.read_text())
        return Outcome(result["failed"], result["seconds"], result["reached"], took, output)

    def _sweep(self) -> None:
        """Kill what it has started and is still there; what is killed may just have started more."""
        for _ in range(5):
            found = [pid for pid in _processes() if self._is_ours(pid)]
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                break
            time.sleep(0.05)
        runs.remove_dead()
        for entry in self._copy.temporary.iterdir():
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        try:
            if _stat(pid)[0] in "ZX":
                return False
            mark = f"{MARK}={self._tag}".encode()
            return (
                os.getsid(pid) == self.pid
                or mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                or self._tag.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
            )
        except OSError:
            return False


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third, the state, on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def _start(pid: int) -> str:
    return _stat(pid)[19]


def _run(copy: Copy, plan: Plan, result: Path, output: Path) -> None:
    """Be the forked process; never returns."""
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        _enter(copy)
        os.environ[MARK] = f"-{os.getpid()}-{_start(os.getpid())}-"
        _test(copy, plan, result)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(0)


def _enter(copy: Copy) -> None:
    """Import everything of ours from the copy."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("tests", "lgss_keyring", "conftest") and name != __name__:
            del sys.modules[name]
    os.chdir(copy.checkout)
    sys.path[0] = str(copy.checkout)
    os.environ["PYTHONPATH"] = str(copy.checkout)
    os.environ["TMPDIR"] = str(copy.temporary)
    tempfile.tempdir = None


def _test(copy: Copy, plan: Plan, result: Path) -> None:
    measured = None
    if plan.measure:
        measured = coverage.Coverage(data_file=None, source=[str(copy.checkout / "lgss_keyring")])
        measured.start()
    report = reporter.Reporter(plan.only, measured.switch_context if measured else None)
    arguments = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        f"--timeout={plan.each}",
        *(["-x"] if plan.stop else []),
    ]
    own = os.getpid()
    status = pytest.main([*arguments, *IGNORED, *plan.files], plugins=[report])
    # A changed module may let a test's child come back here.
    if os.getpid() != own:
        os._exit(1)
    reached: dict[str, dict[int, list[str]]] = {}
    if measured:
        measured.stop()
        data = measured.get_data()
        for name in data.measured_files():
            reached[os.path.relpath(name, copy.checkout)] = data.contexts_by_lineno(name)
    if status != pytest.ExitCode.OK and not report.failed:
        report.failed.append(f"pytest's exit status {int(status)}")
    text = json.dumps({"failed": report.failed, "seconds": report.seconds, "reached": reached})
    temporary = result.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(result)
