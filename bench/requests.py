"""What the benches of lgssd share: its process, the programs, the users, the requests."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import runs
from tests.support.cgroup import Cgroup
from tests.support.site import Site, Upcalls, machine_callout, user_callout
from tests.support.stage import CHECKOUT, Stage, TestingError

HERE = Path(__file__).parent
BURST = 500
USERS = 10
WAIT = 20
# A line for each upcall would be counted, and cut, for each user.
SETTINGS: dict[str, dict[str, Any]] = {"log": {"level": "warning"}, "upcall": {"timeout": 30}}


@dataclass(frozen=True)
class Result:
    """One request: errno, seconds blocked, seconds to the answer (0: none), whether it is a context."""

    error: int
    blocked: float
    updated: float
    is_context: bool

    @property
    def failed(self) -> bool:
        """Whether there is no context."""
        return bool(self.error) or not self.is_context


def compile_c(source: str, program: Path, *options: str) -> Path:
    """Compile a C program of this folder."""
    subprocess.run(["cc", "-O2", "-o", program, HERE / source, *options], check=True)
    return program


class Lgssd:
    """lgssd of the stage, in a process of its own; its workers are in ``cgroup``, if there is one."""

    def __init__(self, site: Site, config: Path, cgroup: Cgroup | None = None) -> None:
        self.socket = str(site.directory / f"upcall-{time.monotonic_ns()}.sock")
        self._command = [sys.executable, "-IS", str(site.stage.directory / "lgssd.py")]
        Stage.write_front(CHECKOUT / "lgssd.py", site.stage.directory / "lgssd.py")
        self._command += ["--upcall-socket", self.socket, "--config", str(config)]
        self._command += ["--socket", f"{self.socket}.pipe"]
        self._cgroup = cgroup
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""

        def enter() -> None:
            if self._cgroup is not None:
                (self._cgroup.path / "cgroup.procs").write_text("0")

        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, preexec_fn=enter)
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise TestingError("lgssd did not start")

    def pids(self) -> list[int]:
        """lgssd's own pid, and those of its workers."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


class Bench:
    """The programs, users and acceptors that all figures share."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.folder = site.stage.directory
        self.users = [runs.first_uid() + number for number in range(USERS)]
        for uid in self.users:
            site.kinit(uid)
        self.burst = compile_c("burst.c", self.folder / "burst", "-lkeyutils")
        self.burst.chmod(0o755)
        self.acceptor = site.new_acceptor("--processes", "4")
        self.settings = {**SETTINGS, "rpcsec_gss": {"port": self.acceptor.port, "reply_timeout": 10}}
        self.native = self._native()
        self.program = self.native or site.stage.program
        """The front that bursts and memory are measured with."""

    def _native(self) -> Path | None:
        program = CHECKOUT / "build" / "native" / "lgss_keyring"
        subprocess.run(["make", "-s", "-C", str(CHECKOUT / "native")], check=False, capture_output=True)
        if not program.exists():
            return None
        shutil.copy2(program, self.folder / "lgss_keyring-native")
        return self.folder / "lgss_keyring-native"

    @contextlib.contextmanager
    def served(self, program: Path, cgroup: Cgroup | None = None) -> Iterator[tuple[Upcalls, Lgssd]]:
        """A rule for ``program``, and the lgssd that has the rule's configuration."""
        with self.site.upcalls(self.settings, "--lgssd @", program=program) as upcalls:
            daemon = Lgssd(self.site, upcalls.config_file, cgroup)
            try:
                lead(upcalls, daemon)
                yield upcalls, daemon
            finally:
                daemon.close()

    def ask(
        self, upcalls: Upcalls, uid: int, count: int = 1, at_once: int = 1, start: int = 0, wait: int = WAIT
    ) -> subprocess.Popen[str]:
        """Let ``uid`` (0: for the machine) make ``count`` requests; :func:`results` waits for them."""
        callout = user_callout(uid) if uid else machine_callout()
        command = [str(self.burst), str(uid), str(count), str(at_once), str(start), upcalls.name(), callout]
        return subprocess.Popen([*command, str(wait)], stdout=subprocess.PIPE, text=True)


def lead(upcalls: Upcalls, daemon: Lgssd) -> None:
    """Let a rule with `--lgssd @` lead to ``daemon``."""
    path = upcalls.rule.path
    path.write_text(path.read_text().replace("--lgssd @", f"--lgssd {daemon.socket}"))


def results(*processes: subprocess.Popen[str]) -> list[Result]:
    """What the requests of ``processes`` came to."""
    found = []
    for process in processes:
        output, _ = process.communicate()
        if process.returncode:
            raise TestingError(f"burst ended with {process.returncode}")
        for line in output.splitlines():
            error, blocked, updated, first = map(int, line.split())
            found.append(Result(error, blocked / 1e6, updated / 1e6, bool(first)))
    return found


def checked(found: list[Result]) -> list[Result]:
    """``found``, if all have contexts."""
    bad = [each for each in found if each.failed]
    if bad:
        raise TestingError(f"{len(bad)} of {len(found)} have no context: {bad[0]}")
    return found


def moment(seconds: float) -> int:
    """The moment in so many seconds, for burst."""
    return int((time.monotonic() + seconds) * 1000)


def wait_for_quota(uids: Sequence[int]) -> None:
    """Wait until the kernel has collected the keys of earlier requests, which count until then."""
    end = time.monotonic() + 60
    while True:
        used = {}
        for line in Path("/proc/key-users").read_text().splitlines():
            uid, _, rest = line.partition(":")
            used[int(uid)] = int(rest.split()[2].partition("/")[0])
        if all(used.get(uid, 0) < 20 for uid in uids):
            return
        if time.monotonic() > end:
            raise TestingError(f"keys of earlier requests do not go: {used}")
        time.sleep(0.1)
