#!/usr/bin/env python3
"""Install lgss_keyring for request-key(8), or take it away: `make install`, `make uninstall`.

usage: install.py install|uninstall --prefix DIR --sysconfdir DIR [--destdir DIR] [--wheels DIR] [--no-native]
                  [--no-units]

    PREFIX/lib/lgss_keyring/VERSION-TIME/     programs, package, dependencies
    PREFIX/lib/lgss_keyring/current           the link to the one in use
    PREFIX/sbin/lgss_keyring, lgssd           links to current/front and current/lgssd.py; `front` leads to
                                              lgss_keyring-native, in C, or to lgss_keyring.py
    PREFIX/share/man/man5, man8               manual pages
    SYSCONFDIR/request-key.d/lgssc.conf       the rule
    PREFIX/lib/systemd/system                 lgssd's units, which nothing enables
    PREFIX/lib/tmpfiles.d/lgss.conf           /run/lgss

An upcall must find a whole installation at any moment: the new one is built beside the old one and
tried, and then one rename switches ``current``.  An upcall that began with the old one still loads
modules from it, so that stays for longer than any --timeout, and goes with a later install.  The
interpreter that runs this is the one that the installed programs name.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("install: Python 3.11 or newer is needed; PYTHON=... chooses one")

import sysconfig
import tomllib

from building import build, check, interpreter
from ownership import CURRENT, FRONT, PROGRAMS, RECORD, InstallError, Target, digest, refuse_writable
from units import reload_units, remove_units

CHECKOUT = Path(__file__).resolve().parents[1]
OLD_LIFE = 3600 + 60
"""Seconds that an installation is kept after the switch: the longest --timeout, and some more."""


def say(text: str) -> None:
    """Tell the person who installs."""
    print(f"lgss_keyring: {text}", flush=True)


def install(target: Target, wheels: Path, with_native: bool) -> None:
    """Install, or raise InstallError or OSError and leave everything as it was."""
    refuse_unsafe(target)
    target.refuse_foreign()
    if not wheels.is_dir():
        raise InstallError(f"{wheels} is no folder; WHEELS names the one with the wheels")
    # What is made from now on is for everybody to read and for root alone to write.
    os.umask(0o022)
    folders = {target.library, target.sbin, target.rule.parent, *(page.parent for page in target.pages())}
    folders |= {unit.parent for unit in target.units()}
    made = [folder for folder in folders if not folder.is_dir()]
    try:
        for folder in made:
            folder.mkdir(parents=True, exist_ok=True)
        with locked(target.library):
            install_locked(target, wheels, with_native)
    except BaseException:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def install_locked(target: Target, wheels: Path, with_native: bool) -> None:
    """Build, try, switch, and remove what is old; no other install works there."""
    for leftover in target.library.glob(".new-*"):
        shutil.rmtree(leftover)
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    final = target.library / f"{version}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"
    new = target.library / f".new-{final.name}"
    new.mkdir(mode=0o700)
    try:
        reason = build(new, final, CHECKOUT, wheels, with_native)
        check(new)
        rules = [*target.recorded(), digest(target.rule_text)]
        (new / RECORD).write_text(json.dumps({"rules": sorted(set(rules))}))
        go_live(target, new, final)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    remove_old(target, final)
    reload_units(target)
    front = f"the front in Python ({reason})" if reason else "the front in C"
    say(f"{final} is in use, with {front} and {interpreter()}")


def refuse_unsafe(target: Target) -> None:
    """Refuse where others could change what will run as root."""
    paths = sysconfig.get_paths()
    for path in {interpreter(), paths["stdlib"], paths["platstdlib"]}:
        refuse_writable(Path(path), "the interpreter (PYTHON)", Path("/"), not target.is_live)
    for folder in (target.library, target.sbin, target.rule):
        refuse_writable(folder, "the target", target.top, not target.is_live)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other install or uninstall work there meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InstallError(f"another install or uninstall works in {folder}; wait for its end") from None
        yield
    finally:
        os.close(descriptor)


def go_live(target: Target, new: Path, final: Path) -> None:
    """Put the built and tried folder ``new`` into use, as ``final``: everything is written
    beside its place before anything is renamed into it, the rule last."""
    prepared: list[tuple[Path, Path]] = []
    try:
        for page, source in target.pages().items():
            prepared.append((write_beside(page, source.read_text()), page))
        for unit, text in target.units().items():
            prepared.append((write_beside(unit, text), unit))
        for program in PROGRAMS:
            link = target.sbin / program
            name = FRONT if program == PROGRAMS[0] else f"{program}.py"
            prepared.append((link_beside(link, f"../lib/lgss_keyring/{CURRENT}/{name}"), link))
        rule = rule_to_write(target)
        if rule:
            prepared.append((write_beside(rule, target.rule_text), rule))
        switch = link_beside(target.library / CURRENT, final.name)
        prepared.append((switch, target.library / CURRENT))
        retire(target)
        new.rename(final)
        switch.rename(target.library / CURRENT)
        for written, place in prepared:
            if written != switch:
                written.rename(place)
    finally:
        for written, _ in prepared:
            written.unlink(missing_ok=True)
    if rule == target.new_rule:
        say(f"{target.rule} was edited, so it is kept; the new one is {rule}")


def rule_to_write(target: Target) -> Path | None:
    """The file that gets the rule: beside an edited one it is for people to compare with, because
    request-key(8) reads files that end in .conf only."""
    if not os.path.lexists(target.rule) or target.is_unedited(target.rule):
        return target.rule
    if os.path.lexists(target.new_rule) and not target.has_our_mark(target.new_rule):
        say(f"{target.rule} was edited, so it is kept; {target.new_rule} is not this program's and stays too")
        return None
    return target.new_rule


def write_beside(place: Path, text: str) -> Path:
    """Write a file to be renamed to ``place``; no *.conf, which request-key(8) would read."""
    path = place.with_name(f".{place.name}.{os.getpid()}")
    path.write_text(text)
    path.chmod(0o644)
    return path


def link_beside(place: Path, leads_to: str) -> Path:
    """Make a link to be renamed to ``place``."""
    path = place.with_name(f".{place.name}.{os.getpid()}")
    path.unlink(missing_ok=True)
    path.symlink_to(leads_to)
    return path


def retire(target: Target) -> None:
    """Note that the life of what is in use ends with this moment: its folder's time of change."""
    current = target.library / CURRENT
    for each in [current.resolve()] if current.is_dir() else target.flat():
        os.utime(each)


def remove_old(target: Target, current: Path) -> None:
    """Remove the installations that no upcall can have begun with, and no process has open."""
    for each in [*target.versions(), *target.flat()]:
        is_old = time.time() - each.lstat().st_mtime > OLD_LIFE
        if each != current and is_old and not is_mapped(each):
            remove(each)


def is_mapped(folder: Path) -> bool:
    """Whether a process, lgssd say, has loaded a library from there."""
    name = os.fsencode(folder.resolve()) + b"/"
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if name in maps.read_bytes():
                return True
        except OSError:
            pass  # it has ended, or is not ours to look at
    return False


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def uninstall(target: Target) -> None:
    """Take away what is ours and as install wrote it; say what is kept."""
    # The rule first: nothing is to lead to a program that is gone.
    if os.path.lexists(target.rule):
        if target.is_unedited(target.rule):
            target.rule.unlink()
        else:
            how = "was edited" if target.has_our_mark(target.rule) else "is not this program's"
            say(f"{target.rule} {how}, so it is kept")
    if os.path.lexists(target.new_rule) and target.has_our_mark(target.new_rule):
        target.new_rule.unlink()
    remove_units(target)
    for program in PROGRAMS:
        link = target.sbin / program
        if target.is_our_link(link):
            link.unlink()
        elif os.path.lexists(link):
            say(f"{link} is not this program's, so it is kept")
    if target.library.is_dir():
        with locked(target.library):
            ours = [*target.versions(), *target.flat(), *target.library.glob(".new-*")]
            for each in [target.library / CURRENT, *ours]:
                remove(each)
            if not any(target.library.iterdir()):
                target.library.rmdir()
    for page in target.pages():
        if os.path.lexists(page) and target.is_our_page(page):
            page.unlink()
        # Made by install where nobody had manual pages; another's stay.
        if page.parent.is_dir() and not any(page.parent.iterdir()):
            page.parent.rmdir()
    # The machine's tickets, and notes of failures.
    if target.state.is_dir() and stat.S_ISDIR(target.state.lstat().st_mode):
        shutil.rmtree(target.state)


def main() -> int:
    """Exit status 1, after a sentence, if it could not be done."""
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("usage: ")[1].split("\n\n")[0])
    parser.add_argument("action", choices=("install", "uninstall"))
    parser.add_argument("--prefix", default="/usr")
    parser.add_argument("--sysconfdir", default="/etc")
    parser.add_argument("--destdir", default="")
    parser.add_argument("--wheels", default=str(CHECKOUT / ".venv" / "wheels"))
    parser.add_argument("--no-native", action="store_true")
    parser.add_argument("--no-units", action="store_true")
    given = parser.parse_args()
    # Ended by a signal it takes away what it has begun.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        destdir = os.path.abspath(given.destdir) if given.destdir else ""
        target = Target(CHECKOUT, given.prefix, given.sysconfdir, destdir, not given.no_units)
        if given.action == "install":
            install(target, Path(given.wheels).resolve(), not given.no_native)
        else:
            uninstall(target)
    except PermissionError as error:
        print(f"{given.action}: {error}; run it as root", file=sys.stderr)
        return 1
    except (InstallError, OSError) as error:
        print(f"{given.action}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
