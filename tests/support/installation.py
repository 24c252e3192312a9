"""``make install`` and ``make uninstall`` into a folder (DESTDIR), and upcalls meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.requestor import Answer, Requestor
from tests.support.site import USER_UID, Upcalls, user_callout
from tests.support.stage import CHECKOUT

NEEDED = (
    "Makefile",
    "lgss_keyring",
    "lgss_keyring.py",
    "lgssd.py",
    "man",
    "native",
    "pyproject.toml",
    "request-key.d",
    "setup-packages",
    "systemd",
    "tests/vm/vm.mk",
    "tools",
)
"""What `make install` reads of a checkout."""
GENERATION, REQUESTORS = 50, 10
"""Upcalls whose keys are there at the same time, below a user's quota of 200, and the processes
that they are shared among."""


def copy_checkout(folder: Path) -> Path:
    """A checkout of one's own, to be damaged; gives the folder."""
    for name in NEEDED:
        source, target = CHECKOUT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


class Installation:
    """An installation below ``directory``, made from ``checkout``."""

    def __init__(self, directory: Path, checkout: Path = CHECKOUT) -> None:
        self.directory = directory
        self.checkout = checkout
        self.library = directory / "usr/lib/lgss_keyring"
        self.program = directory / "usr/sbin/lgss_keyring"
        self.rule = directory / "etc/request-key.d/lgssc.conf"

    def make(self, target: str, shell: str = "", **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run the target; ``shell`` is run before, in the same shell (umask)."""
        given = {
            "DESTDIR": self.directory,
            "PYTHON": sys.executable,
            "WHEELS": CHECKOUT / ".venv" / "wheels",
            **variables,
        }
        words = ["make", "-s", "-C", str(self.checkout), target]
        words += [f"{name}={value}" for name, value in given.items()]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
        }
        command = ["sh", "-c", f'{shell or ":"}; exec "$@"', "sh", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    def install(self, **variables: Any) -> str:
        """Install; what was said. Raises AssertionError if that failed."""
        done = self.make("install", **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, target: str = "install", **variables: Any) -> str:
        """Try a target that has to fail and to change nothing; what it said."""
        before = self.listing()
        done = self.make(target, **variables)
        assert done.returncode != 0, done.stdout
        assert self.listing() == before
        return done.stderr

    def listing(self) -> dict[str, tuple[int, str]]:
        """Each file, link and folder: its mode, and its text or where it leads to."""
        found = {}
        for path in self.directory.rglob("*"):
            content = os.readlink(path) if path.is_symlink() else ""
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes().hex() if path.stat().st_size < 100_000 else "large"
            found[str(path)] = (path.lstat().st_mode, content)
        return found

    def files(self) -> list[Path]:
        """All that is no folder."""
        return [path for path in self.directory.rglob("*") if path.is_symlink() or not path.is_dir()]


def upcalls_during(
    upcalls: Upcalls, count: int, rate: float, works: list[Callable[[], object]]
) -> tuple[list[Answer], list[BaseException]]:
    """Make ``count`` upcalls, ``rate`` a second, while ``works`` are done one after the other with
    equal pauses; the answers, and what the works raised."""
    errors: list[BaseException] = []

    def work() -> None:
        began = time.monotonic()
        for number, each in enumerate(works):
            time.sleep(max(0.0, began + number * count / rate / len(works) - time.monotonic()))
            try:
                each()
            except BaseException as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    answers: list[Answer] = []
    while len(answers) < count:
        users = [Requestor(USER_UID) for _ in range(REQUESTORS)]
        began = time.monotonic()
        chosen = [users[number % REQUESTORS] for number in range(min(GENERATION, count - len(answers)))]
        for number, user in enumerate(chosen):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            user.start(upcalls.name(), user_callout(), wait=15.0)
        answers += [user.result() for user in chosen]
        for user in users:
            user.close()
    thread.join()
    return answers, errors
