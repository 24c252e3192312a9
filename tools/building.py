"""One folder with all that runs: programs, package and dependencies; built, then tried."""

from __future__ import annotations

import compileall
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from ownership import FRONT, PROGRAMS, InstallError

NATIVE = "lgss_keyring-native"
"""The front in C; beside the one in Python, which it becomes for all that is out of the ordinary."""
COMPILERS = ("musl-gcc", "gcc", "cc")
"""As in native/Makefile."""

CHECK_SECONDS = 60
"""How long the new program may take for each step of its trial."""
TRIED = ("formats", "front", "monitor", "system", "worker")
"""The rooms whose modules an upcall imports; lgssd is tried by running it."""
IMPORT_ALL = """\
import importlib, os, sys
sys.path.append(sys.argv[1])
for room in sys.argv[2:]:
    top = os.path.join(sys.argv[1], "lgss_keyring", room)
    for folder, _, files in os.walk(top):
        for name in files:
            if name.endswith(".py") and name != "__main__.py":
                path = os.path.relpath(os.path.join(folder, name), sys.argv[1])[:-3]
                importlib.import_module(path.replace("/", ".").removesuffix(".__init__"))
import gssapi, krb5
"""


def interpreter() -> str:
    """The interpreter itself, not a shim or the link of a virtual environment: it goes into the
    programs' first lines."""
    return os.path.realpath(sys.executable)


def build(folder: Path, final: Path, checkout: Path, wheels: Path, with_native: bool) -> str:
    """Fill ``folder``, which is renamed to ``final`` later on: that is where it will run.

    Returns why the front is not the one in C, if it is not.
    """
    _unpack_dependencies(folder, checkout, wheels)
    shutil.rmtree(folder / "bin", ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__", "*.py[co]", ".*", "*~")
    shutil.copytree(checkout / "lgss_keyring", folder / "lgss_keyring", ignore=unwanted)
    for program in PROGRAMS:
        _, _, rest = (checkout / f"{program}.py").read_text().partition("\n")
        (folder / f"{program}.py").write_text(f"#!{interpreter()} -IS\n{rest}")
    reason = _build_native(folder, checkout) if with_native else "NATIVE=no"
    (folder / FRONT).symlink_to("lgss_keyring.py" if reason else NATIVE)
    # Not fatal: packages may bring a file for another version of Python.
    compileall.compile_dir(str(folder), quiet=2, stripdir=str(folder), prependdir=str(final), maxlevels=20)
    _set_modes(folder)
    return reason


def _build_native(folder: Path, checkout: Path) -> str:
    """Build the front in C; returns why that is not possible, empty if it was."""
    if not any(map(shutil.which, COMPILERS)):
        return "there is no C compiler"
    built = folder / ".native"
    command = ["make", "-sC", str(checkout / "native"), f"BUILD={built}"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        (built / "lgss_keyring").rename(folder / NATIVE)
    shutil.rmtree(built, ignore_errors=True)
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return f"it cannot be compiled here: {lines[0] if lines else command}" if done.returncode else ""


def _unpack_dependencies(folder: Path, checkout: Path, wheels: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))
    }
    environment["PIP_CONFIG_FILE"] = os.devnull
    command = [*_pip(checkout, wheels), "-qq", "--disable-pip-version-check", "install", "--no-index"]
    command += ["--find-links", str(wheels), "--no-compile", "--root-user-action", "ignore"]
    command += ["--target", str(folder), *project["dependencies"]]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise InstallError(
            f"the wheels in {wheels} cannot be unpacked for {interpreter()} (Python "
            f"{sys.version_info[0]}.{sys.version_info[1]}); `make wheels` with that PYTHON makes some "
            f"that can. pip says:\n{(done.stdout + done.stderr).strip()}"
        )


def _pip(checkout: Path, wheels: Path) -> list[str]:
    """The command that runs a pip under this interpreter, which may have none of its own (Debian's):
    a wheel of pip is a program, too."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-I", "-m", "pip"]
    candidates = [f"{wheel}/pip" for wheel in sorted(wheels.glob("pip-*.whl"), reverse=True)]
    candidates += map(str, checkout.glob(".venv/lib/python3*/site-packages/pip"))
    bundled = (Path("/usr/share/python-wheels"), Path(sysconfig.get_path("stdlib"), "ensurepip", "_bundled"))
    candidates += [f"{wheel}/pip" for folder in bundled for wheel in folder.glob("pip-*.whl")]
    if not candidates:
        raise InstallError(
            f"{interpreter()} has no pip, and there is none in {wheels}. Nothing was changed. "
            "Put pip's wheel there (`pip download pip`, or `make wheels`), or install the package python3-pip"
        )
    return [sys.executable, "-I", candidates[0]]


def _set_modes(folder: Path) -> None:
    """Modes and owner are the installation's own, not those of the checkout or the wheels."""
    programs = {str(folder / NATIVE), *(str(folder / f"{program}.py") for program in PROGRAMS)}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            if os.geteuid() == 0:
                os.lchown(path, 0, 0)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if name in folders or path in programs else 0o644)
    folder.chmod(0o755)


def check(folder: Path) -> None:
    """Run the programs, and import what an upcall imports."""
    # The front in C leaves this to the one in Python.
    commands = [
        [str(folder / name), "--help"] for name in (FRONT, *(f"{program}.py" for program in PROGRAMS))
    ]
    commands.append([interpreter(), "-ISB", "-c", IMPORT_ALL, str(folder), *TRIED])
    for command in commands:
        try:
            done = subprocess.run(
                command,
                env={"PATH": os.defpath},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CHECK_SECONDS,
            )
            status, said = done.returncode, done.stdout + done.stderr
        except (OSError, subprocess.TimeoutExpired) as error:
            status, said = 1, str(error)
        if status:
            raise InstallError(
                "the new program does not run, so nothing was changed: "
                f"{' '.join(command[:2])}: {said.strip()[-2000:] or f'exit status {status}'}"
            )
