"""How long tests wait on this machine, and what they wait for: processes that end, keys that go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.site import Site

BARE_SECONDS = 0.010
"""What a bare Python handler blocks its caller for on a real machine, for :func:`pace`."""


class Pace:
    """How much slower than a real machine this one is; 1 unless it is an emulated one.

    There (LGSS_VM in the environment) every bar is a ratio to a bare handler: measured
    in the same machine, before the first test.  A real one that others use at the same time is
    measured when something has taken too long, and then.
    """

    factor = 1.0
    bare: Callable[[], float] | None = None
    """Gives what a bare handler may block its caller for just now; None as long as there is no site."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def now(self) -> float:
        """How much slower the machine is at this moment."""
        # A child that became a user cannot make the rule.
        if self.bare is None or os.getpid() != self._process or os.geteuid() != 0:
            return self.factor
        return max(self.factor, self.bare() / BARE_SECONDS)

    def met(self, seconds: float, bar: float) -> bool:
        """Whether ``seconds`` are below ``bar``, which is for a quiet real machine."""
        return seconds < self(bar) or seconds < bar * self.now()

    def __call__(self, seconds: float) -> float:
        """A bar of so many seconds on a real machine, on this one."""
        return seconds * self.factor

    def whole(self, seconds: int) -> int:
        """A limit of the product's own, which has a second of slack on a real machine."""
        return max(seconds, round(self(seconds) / 4))


pace = Pace()


def upcall_processes(site: Site) -> list[int]:
    """The pids, zombies left out, of all processes that run the stage's front."""
    found = []
    folder, program = str(site.stage.directory).encode(), str(site.stage.program).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # A zombie has no command line.
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words != [b""]:
                    # The kernel tells a program, but not a script, its base name only.
                    words.append(os.fsencode(os.readlink(entry / "exe")))
                if any(word == program or word.startswith(folder) for word in words):
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def keys_of(uid: int) -> int:
    """How many keys of ``uid`` there are, by /proc/key-users (docs/protocol.md 10)."""
    for line in Path("/proc/key-users").read_text().splitlines():
        owner, _, counts = line.partition(":")
        if int(owner) == uid:
            return int(counts.split()[1].split("/")[0])
    return 0


def within(seconds: float, condition: object) -> bool:
    """Whether ``condition()`` becomes true in that time, at this machine's pace."""
    assert callable(condition)
    begun = time.monotonic()
    end, is_measured = begun + pace(seconds), False
    while not condition():
        if time.monotonic() > end and not is_measured:
            end, is_measured = begun + seconds * pace.now(), True
        elif time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def root_processes(site: Site) -> tuple[int, int]:
    """The pids of the one upcall's witness and of its monitor, which is the witness's child."""
    found = {}
    for pid in upcall_processes(site):
        status = Path(f"/proc/{pid}/status").read_text()
        if "Uid:\t0\t0" in status:
            found[pid] = int(status.split("PPid:\t")[1].split()[0])
    ((monitor, witness),) = [(pid, parent) for pid, parent in found.items() if parent in found]
    return witness, monitor


def workers_in(site: Site, inside: int) -> list[int]:
    """The pids of the upcalls' processes in the mount namespace with the inode ``inside``."""
    found = []
    for pid in upcall_processes(site):
        try:
            if os.stat(f"/proc/{pid}/ns/mnt").st_ino == inside:
                found.append(pid)
        except OSError:
            pass  # it has ended
    return found
