"""What is this program's and what is not, and who else may write it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

PROGRAMS = ("lgss_keyring", "lgssd")
UNITS = ("lgssd.socket", "lgssd-pipe.socket", "lgssd.service")
TMPFILES = "lgss.conf"
UNIT_MARK = "# lgss_keyring: "
"""How the first line of each of our units, and of TMPFILES, begins."""
RECORD = "installed.json"
"""In each installation's folder: the digests of the rules that were written since the first one."""
CURRENT = "current"
FRONT = "front"
"""In each installation's folder: the link to the front that is in use, the one in C or the one in Python."""


class InstallError(Exception):
    """Why nothing was changed, and what to do; for the person who installs."""


class Target:
    """Where an installation goes: PREFIX, SYSCONFDIR and DESTDIR, as of the GNU conventions.

    The paths begin with DESTDIR.  ``link_of`` and ``rule_text`` have those without it, which hold
    when the installation is in use.
    """

    def __init__(
        self, checkout: Path, prefix: str, sysconfdir: str, destdir: str, has_units: bool = True
    ) -> None:
        """``has_units``: systemd is there, or may have been."""
        for name, value in (("PREFIX", prefix), ("SYSCONFDIR", sysconfdir)):
            if not value.startswith("/") or any(character.isspace() for character in value):
                raise InstallError(f"{name}={value!r} is no absolute path without spaces")
        self.checkout = checkout
        self.has_units = has_units
        self.prefix = os.path.normpath(prefix)
        self.top = Path(destdir or "/")
        self.library = self._below(f"{self.prefix}/lib/lgss_keyring")
        self.sbin = self._below(f"{self.prefix}/sbin")
        self.man = self._below(f"{self.prefix}/share/man")
        self.rule = self._below(f"{sysconfdir}/request-key.d/lgssc.conf")
        self.new_rule = self.rule.with_name("lgssc.conf.new")
        self.state = self._below("/run/lgss")
        # request-key(8) of this machine reads the rule as soon as it is there.
        self.is_live = self.rule.parent.resolve() == Path("/etc/request-key.d")
        template = (checkout / "request-key.d" / "lgssc.conf").read_text()
        self.rule_text = template.replace("@SBINDIR@", f"{self.prefix}/sbin")
        self.mark = template.splitlines()[0]

    def _below(self, path: str) -> Path:
        return self.top / os.path.normpath(path).lstrip("/")

    def pages(self) -> dict[Path, Path]:
        """The manual pages: source by target."""
        sources = sorted((self.checkout / "man").glob("*.[58]"))
        return {self.man / f"man{source.suffix[1:]}" / source.name: source for source in sources}

    def units(self) -> dict[Path, str]:
        """systemd's units, and what makes /run/lgss: text by target."""
        texts = {}
        for name in (*UNITS, TMPFILES) if self.has_units else ():
            folder = "tmpfiles.d" if name == TMPFILES else "systemd/system"
            text = (self.checkout / "systemd" / name).read_text()
            place = self._below(f"{self.prefix}/lib/{folder}/{name}")
            texts[place] = text.replace("=/usr/sbin/", f"={self.prefix}/sbin/")
        return texts

    def is_our_unit(self, unit: Path) -> bool:
        """Whether a file that has the name of one of :meth:`units` is this program's."""
        return not unit.is_symlink() and unit.read_text(errors="replace").startswith(UNIT_MARK)

    def is_our_link(self, link: Path) -> bool:
        """Whether ``link``, in sbin, leads to the program below PREFIX/lib/lgss_keyring."""
        if not link.is_symlink():
            return False
        leads_to = os.path.normpath(os.path.join(self.prefix, "sbin", os.readlink(link)))
        return leads_to.startswith(f"{self.prefix}/lib/lgss_keyring/")

    def is_our_page(self, page: Path) -> bool:
        """Whether a manual page is one of this program's, of whatever version."""
        head = page.read_text(errors="replace").split("\n", 1)[0]
        return head.startswith(f".TH {page.stem.upper()} ") and '"lgss_keyring ' in head

    def has_our_mark(self, rule: Path) -> bool:
        """Whether a rule is one that an installation wrote, edited or not."""
        return self.mark in rule.read_text(errors="replace")

    def is_unedited(self, rule: Path) -> bool:
        """Whether a rule is as an installation wrote it."""
        if rule.is_symlink():
            return False
        text = rule.read_text(errors="replace")
        return text == self.rule_text or digest(text) in self.recorded()

    def recorded(self) -> list[str]:
        """The digests of rules that the current installation and those before it have written."""
        try:
            rules = json.loads((self.library / CURRENT / RECORD).read_text())["rules"]
            return [str(each) for each in rules]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def versions(self) -> list[Path]:
        """The folders of installations, the current one too."""
        return [path.parent for path in self.library.glob(f"[!.]*/{RECORD}") if not path.parent.is_symlink()]

    def flat(self) -> list[Path]:
        """What an installation without versions has left (before November 2026)."""
        library = self.library
        if not (library / "lgss_keyring.py").is_file() or not (library / "lgss_keyring").is_dir():
            return []
        others = {*self.versions(), library / CURRENT}
        return [path for path in library.iterdir() if path not in others and path.name[0] != "."]

    def refuse_foreign(self) -> None:
        """Refuse to go on where a file that is not ours has the name of one that is."""
        foreign = [
            path
            for path in (self.sbin / program for program in PROGRAMS)
            if os.path.lexists(path) and not self.is_our_link(path)
        ]
        foreign += [path for path in self.pages() if os.path.lexists(path) and not self.is_our_page(path)]
        foreign += [path for path in self.units() if os.path.lexists(path) and not self.is_our_unit(path)]
        if os.path.lexists(self.rule) and not self.has_our_mark(self.rule):
            foreign.append(self.rule)
        if not foreign:
            return
        diverts = self.top == Path("/") and shutil.which("dpkg-divert")
        commands = [
            f"    dpkg-divert --local --rename --add {path}" if diverts else f"    mv {path} {path}.before"
            for path in foreign
        ]
        names = " and ".join(str(path) for path in foreign)
        raise InstallError(
            f"{names}: not written by this program (Lustre's own?), so it stays, and nothing was changed.\n"
            "To put this program in its place, move it away first, and install again:\n" + "\n".join(commands)
        )


def digest(text: str) -> str:
    """SHA-256 of a rule."""
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_writable(path: Path, what: str, top: Path, sticky_will_do: bool) -> None:
    """Refuse ``path``, if it or a folder above it, up to but without ``top``, may be written by
    anybody but root and the user who installs.  What is not there yet is not looked at.

    A sticky folder (/tmp) protects what is in it until a reboot empties it: enough
    (``sticky_will_do``) for a trial, and not for what a live rule leads to.
    """
    for start in {Path(os.path.abspath(path)), path.resolve()}:
        for each in (start, *start.parents):
            if each == top and top != Path("/"):
                break
            try:
                status = each.lstat()
            except FileNotFoundError:
                continue
            reason = _writable_by_others(status, sticky_will_do)
            if reason:
                raise InstallError(
                    f"{what}: {each} may be written by others ({reason}), who could then run code as root. "
                    f"Nothing was changed. Close it (chown root {each}; chmod go-w {each}), or choose another"
                )


def _writable_by_others(status: os.stat_result, sticky_will_do: bool) -> str:
    if status.st_uid not in (0, os.geteuid()):
        return f"its owner is uid {status.st_uid}"
    is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if stat.S_ISLNK(status.st_mode) or (is_sticky and sticky_will_do):
        return ""
    shared = status.st_mode & 0o002 or (status.st_mode & 0o020 and status.st_gid != 0)
    return f"mode {stat.S_IMODE(status.st_mode):04o}, gid {status.st_gid}" if shared else ""
