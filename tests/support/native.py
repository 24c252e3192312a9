"""The native front (native/), built; and a folder in which it lies beside a stand-in for lgss_keyring.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.support import runs

CHECKOUT = Path(__file__).parents[2]
BUILT = CHECKOUT / "build" / "native" / "lgss_keyring"
# A front that only notes how it was called: its words, and what its child's pipe holds.
STAND_IN = """\
import json, os, sys
words = sys.argv[1:]
pipe = None
if "--instantiated" in words:
    pipe = os.read(int(words[words.index("--instantiated") + 1].split(":")[0]), 9).decode()
name = f"{os.path.dirname(os.path.abspath(__file__))}/{os.getpid()}"
with open(f"{name}.new", "w") as call:
    call.write(json.dumps([words, pipe]))
os.rename(f"{name}.new", f"{name}.call")
"""


def has_compiler() -> bool:
    """Whether the native front can be built here."""
    return any(map(shutil.which, ("musl-gcc", "gcc", "cc")))


def build() -> Path:
    """The native front, built; its path."""
    done = subprocess.run(["make", "-sC", CHECKOUT / "native"], capture_output=True, text=True)
    if done.returncode:
        raise runs.TestingError(f"the native front cannot be built:\n{done.stdout}{done.stderr}")
    return BUILT


class StandIn:
    """A folder with the native front, :attr:`program`, and the stand-in; a context manager."""

    def __init__(self) -> None:
        self.directory = runs.folder("native")
        self.program = self.directory / "lgss_keyring"
        shutil.copy2(build(), self.program)
        script = self.directory / "lgss_keyring.py"
        script.write_text(f"#!{os.path.realpath(sys.executable)} -IS\n{STAND_IN}")
        script.chmod(0o755)

    def calls(self) -> list[tuple[list[str], str | None]]:
        """How the stand-in was called since the last look: its words, and what it read from its child's
        pipe, None without --instantiated."""
        found = []
        for path in self.directory.glob("*.call"):
            words, pipe = json.loads(path.read_text())
            found.append((words, pipe))
            path.unlink()
        return found

    def pids(self) -> list[int]:
        """The processes that run the native front."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "exe") == str(self.program):
                    found.append(int(entry.name))
            except OSError:
                pass  # it has ended, or is a zombie
        return sorted(found)

    def child(self) -> tuple[int, int]:
        """The pids of the one upcall's witness and of the process that serves it, waited for."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                # The front itself is of another session.
                pids = [pid for pid in self.pids() if os.getsid(pid) in self.pids()]
            except ProcessLookupError:
                continue
            if len(pids) == 2:
                return pids[0], pids[1]
            time.sleep(0.01)
        raise runs.TestingError("there is no child of a native front")

    def close(self) -> None:
        """Remove the folder."""
        runs.remove(self.directory)

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
