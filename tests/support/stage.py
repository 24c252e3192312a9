"""An installation of the checkout for a while, and the rule that leads to it.

A stage has the layout of ``make install``, so what tests, demo and bench run is what
a user runs: one folder with the front, the package and its dependencies.  All of them
are copies: a rule that outlives its run must not lead root into a checkout, which may
go, so that others could make its path again (:mod:`.runs`).  The interpreter cannot be
named in the rule instead: request-key(8) passes its base name as argv[0], and it would
not find its own library (docs/protocol.md 1).
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

import lgss_keyring
from tests.support import native, runs
from tests.support.runs import RULE_PREFIX, RULES
from tests.support.runs import TestingError as TestingError

PACKAGE = Path(lgss_keyring.__file__).parent
CHECKOUT = PACKAGE.parent
TEMPLATE = CHECKOUT / "request-key.d" / "lgss-user.conf.in"


class Stage:
    """A folder with an executable front; a context manager that removes it.

    ``program`` is the front's path, for a request-key rule: ``script``, the one in Python, or with
    LGSS_FRONT=native in the environment the one in C; or that of an installation that LGSS_PROGRAM
    names.
    """

    def __init__(self) -> None:
        self.directory = runs.folder("stage")
        self.program = self.script = self.directory / "lgss_keyring.py"
        try:
            self._fill()
        except BaseException:
            self.close()
            raise
        installed = os.environ.get("LGSS_PROGRAM")
        if os.environ.get("LGSS_FRONT") == "native":
            self.program = self.add_native()
        if installed:
            self.program = Path(installed)

    def _fill(self) -> None:
        self.write_front(CHECKOUT / "lgss_keyring.py", self.script)
        # What `make install` does as well: no upcall should be the one that compiles.
        compileall.compile_dir(str(PACKAGE), quiet=2, maxlevels=4)
        if "COVERAGE_PROCESS_START" in os.environ:
            # The report is about the checkout's files.
            (self.directory / "lgss_keyring").symlink_to(PACKAGE)
        else:
            shutil.copytree(PACKAGE, self.directory / "lgss_keyring")
        library = Path(sysconfig.get_paths()["platlib"])
        for name in _dependencies():
            if (library / name).is_dir():
                shutil.copytree(library / name, self.directory / name)
            else:
                shutil.copy2(library / name, self.directory / name)

    def add_native(self) -> Path:
        """Put the front in C beside the one in Python; its path."""
        program = self.directory / "lgss_keyring-native"
        if not program.exists():
            shutil.copy2(native.build(), program)
        return program

    @staticmethod
    def write_front(source: Path, program: Path, interpreter: str | None = None) -> None:
        """Copy a front, executable, its shebang naming ``interpreter`` (default: the
        one running)."""
        shebang = f"#!{interpreter or os.path.realpath(sys.executable)} -IS\n"
        _, _, rest = source.read_text().partition("\n")
        if "COVERAGE_PROCESS_START" in os.environ:
            rest = rest.replace("\nimport os\n", f"\nimport os; {_measurement()}\n", 1)
        program.write_text(shebang + rest)
        program.chmod(0o755)

    def variant(self, name: str, before: str, statements: str) -> Path:
        """The program of a second installation beside this one, whose front does
        ``statements`` before its one line that begins with ``before``; for provoked faults."""
        folder = self.directory / name
        package = folder / "lgss_keyring"
        package.mkdir(parents=True)
        for entry in self.directory.iterdir():
            if entry.name not in (name, "lgss_keyring", "lgss_keyring.py"):
                (folder / entry.name).symlink_to(entry)
        for entry in (self.directory / "lgss_keyring").iterdir():
            if entry.name not in ("front", "__pycache__"):
                (package / entry.name).symlink_to(entry)
        shutil.copytree(PACKAGE / "front", package / "front", ignore=shutil.ignore_patterns("__pycache__"))
        main = package / "front" / "main.py"
        text = main.read_text()
        (line,) = [line for line in text.splitlines() if line.strip().startswith(before)]
        indent = line[: len(line) - len(line.lstrip())]
        added = "".join(f"{indent}{statement}\n" for statement in statements.splitlines())
        main.write_text(text.replace(line, f"{added}{line}", 1))
        program = folder / "lgss_keyring.py"
        self.write_front(CHECKOUT / "lgss_keyring.py", program)
        return program

    def close(self) -> None:
        """Remove the folder."""
        runs.remove(self.directory)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _dependencies() -> set[str]:
    """The names in this interpreter's library of all that the package needs (pyproject.toml), and
    what that needs.  What is not installed is for other platforms."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted, found, names = list(project["dependencies"]), set(), set()
    while wanted:
        requirement = wanted.pop()
        match = re.match(r"[\w.-]+", requirement)
        if match is None or "extra ==" in requirement or match[0] in found:
            continue
        found.add(match[0])
        try:
            distribution = metadata.distribution(match[0])
        except metadata.PackageNotFoundError:
            continue
        wanted += distribution.requires or []
        names |= {file.parts[0] for file in distribution.files or []}
    return names - {"..", "__pycache__"}


def _measurement() -> str:
    """Statements that begin to measure what a front's process runs (tests/coverage_run.py);
    the packages are not left in reach: a front is to find what lies beside it alone."""
    settings, packages = os.environ["COVERAGE_PROCESS_START"], sysconfig.get_paths()["platlib"]
    start = (CHECKOUT / "tests" / "measured" / "sitecustomize.py").read_text()
    return (
        f"import sys; os.environ['COVERAGE_PROCESS_START'] = {settings!r}; sys.path.append({packages!r}); "
        f"exec({start!r}, {{}}); sys.path.remove({packages!r})"
    )


class Rule:
    """A file in /etc/request-key.d for ``user`` keys whose description matches
    ``pattern`` (request-key.conf(5)); a context manager that takes it away.

    ``key_type`` other than "user" or ``told_type`` (what is passed for %t) are for
    tests.  Never replaces a file that is there, and leads to no program that others could replace.
    """

    def __init__(
        self,
        pattern: str,
        program: Path,
        options: str = "",
        *,
        key_type: str = "user",
        told_type: str = "%t",
        arguments: str | None = None,
    ) -> None:
        if os.geteuid() != 0:
            raise TestingError("only root can install a request-key rule; run this as root")
        if not os.access("/sbin/request-key", os.X_OK):
            raise TestingError("/sbin/request-key is missing; install the package keyutils")
        runs.refuse_writable(program)
        text = TEMPLATE.read_text()
        text = text.replace("@PATTERN@", pattern).replace("@PROGRAM@", str(program))
        text = text.replace("@OPTIONS@ ", f"{options} " if options else "")
        text = text.replace("create\tuser", f"create\t{key_type}").replace("%t", told_type)
        if arguments is not None:
            text = text[: text.index("%o")] + arguments + "\n"
        RULES.mkdir(exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{RULE_PREFIX}{runs.tag()}-", suffix=".conf", dir=RULES)
        self.path = Path(name)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        self.path.chmod(0o644)

    def close(self) -> None:
        """Take the rule away."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Rule:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
