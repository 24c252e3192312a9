"""All that an upcall needs, on one machine for a while: demo, bench and tests.

A :class:`Site` has a realm with its KDC, an acceptor, and a staged front.  Each
:class:`Upcalls` of it is a request-key rule with a configuration of its own, so that
a test can break one thing and leave the others.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgss_keyring.formats.callout import format_callout
from tests.support import runs
from tests.support.realm import Realm
from tests.support.stage import Rule, Stage, TestingError

HOST = "localhost"
LOOPBACK_NID = 2 << 48 | 0x7F000001  # 127.0.0.1@tcp
USER_UID = runs.first_uid()
"""The uid of the user ``alice``; there need be no passwd entry for it."""
STRANGER_UID = USER_UID + 765
"""Another user.  Tests that count what is one uid's have others of this run's, from USER_UID on."""

PROGRAM, VERSION = 0x20004C47, 1

_numbers = itertools.count()


class AcceptorProcess:
    """``python -m tests.support.acceptor`` on a free port of loopback."""

    def __init__(self, realm: Realm, keytab: Path, directory: Path, *arguments: str) -> None:
        self.contexts_file = directory / f"contexts-{next(_numbers)}.jsonl"
        # setpriv: it is to die with us, whatever way we die.
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            sys.executable,
            "-m",
            "tests.support.acceptor",
            "--keytab",
            str(keytab),
        ]
        command += ["--listen", "127.0.0.1:0", "--contexts", str(self.contexts_file), *arguments]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **realm.env},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        # A machine of its own, as the KDC is: its answer has to come within a second.
        os.setpriority(os.PRIO_PROCESS, self._process.pid, -10 if os.geteuid() == 0 else 0)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"(\d+)\s*$", line)
        if not found:
            self.close()
            raise TestingError(f"the acceptor did not start: {line!r}")
        self.port = int(found[1])

    def contexts(self) -> list[dict[str, Any]]:
        """What the acceptor knows of its established contexts, in their order."""
        if not self.contexts_file.exists():
            return []
        return [json.loads(line) for line in self.contexts_file.read_text().splitlines()]

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Site:
    """Realm, acceptor and stage; a context manager that takes all of it away."""

    limit = 1
    """Seconds for connect_timeout and reply_timeout; a slow machine needs more."""

    def __init__(self, enctypes: list[str] | None = None) -> None:
        self.directory = runs.folder("site")
        self._close: list[Any] = [lambda: runs.remove(self.directory)]
        try:
            self.realm = Realm(enctypes=enctypes) if enctypes else Realm()
            self._close.append(self.realm.close)
            self.population = self.realm.populate(HOST)
            self.stage = Stage()
            self._close.append(self.stage.close)
            self.acceptor = self.new_acceptor()
        except BaseException:
            self.close()
            raise

    def new_acceptor(self, *arguments: str) -> AcceptorProcess:
        """Another acceptor, for a fault of its own; ended with the site."""
        acceptor = AcceptorProcess(self.realm, self.population.server_keytab, self.directory, *arguments)
        self._close.append(acceptor.close)
        return acceptor

    def kinit(self, uid: int = USER_UID) -> None:
        """Give ``uid`` a fresh ticket of alice's in its default ccache."""
        self.realm.kinit("alice", uid, uid)

    def upcalls(
        self, settings: Mapping[str, Mapping[str, Any]] | None = None, options: str = "", **rule: Any
    ) -> Upcalls:
        """A rule of its own; ``settings`` go over the site's configuration, section by
        section, and ``options`` before ``create``."""
        return Upcalls(self, settings or {}, options, **rule)

    def close(self) -> None:
        """Take everything away, the last made first."""
        while self._close:
            self._close.pop()()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Upcalls:
    """A request-key rule for ``user`` keys named :meth:`name`; a context manager."""

    def __init__(
        self, site: Site, settings: Mapping[str, Mapping[str, Any]], options: str, **rule: Any
    ) -> None:
        self.tag = f"lgss:{os.getpid()}.{next(_numbers)}:"
        self.log_file = site.directory / f"log-{next(_numbers)}"
        self.config_file = site.directory / f"config-{next(_numbers)}.toml"
        merged: dict[str, dict[str, Any]] = {
            "log": {"file": str(self.log_file), "level": "debug"},
            "krb5": {
                "config": str(site.realm.krb5_conf),
                "keytab": str(site.population.machine_keytab),
                "ccache_directory": str(site.directory / "machine"),
            },
            "rpcsec_gss": {
                "program": PROGRAM,
                "version": VERSION,
                "port": site.acceptor.port,
                "connect_timeout": site.limit,
                "reply_timeout": site.limit,
            },
            "hosts": {"127.0.0.1": HOST},
        }
        for section, values in settings.items():
            merged.setdefault(section, {}).update(values)
        self.config_file.write_text(_toml(merged))
        self.config_file.chmod(0o644)
        program = rule.pop("program", site.stage.program)
        words = f"--config {self.config_file} {options}".strip()
        self.rule = Rule(f"{self.tag}*", program, words, **rule)

    def name(self, rest: str | int | None = None) -> str:
        """A description for a key, matching the rule; new at each call without ``rest``."""
        return f"{self.tag}{next(_numbers) if rest is None else rest}"

    def log(self, wanted: str = "", seconds: float = 5.0) -> list[dict[str, str]]:
        """The log's events as fields, the message under ``message`` and the level under
        ``level``; waits until a line contains ``wanted``."""
        end = time.monotonic() + seconds
        while True:
            text = self.log_file.read_text() if self.log_file.exists() else ""
            if wanted in text or time.monotonic() > end:
                # A line that is being written has no end yet.
                return [_event(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
            time.sleep(0.005)

    def failures(self) -> list[dict[str, str]]:
        """The events that tell of failures, once there is one; others may have come before or between."""
        return [event for event in self.log("LGSS_ERROR=") if "LGSS_ERROR" in event]

    def events(self, key: int, seconds: float = 5.0) -> list[dict[str, str]]:
        """The events of one key, once its last one is there: established or failed."""
        end = time.monotonic() + seconds * Site.limit
        while True:
            events = [event for event in self.log() if event.get("LGSS_KEY") == str(key)]
            last = events[-1] if events else {}
            if last.get("LGSS_STEP") == "updated" or "LGSS_ERROR" in last or time.monotonic() > end:
                return events
            time.sleep(0.005)

    def close(self) -> None:
        """Take the rule away, and what the upcalls have noted of known failures."""
        self.rule.close()
        for note in Path("/run/lgss").glob(f"failed-*-{str(self.config_file).replace('/', '%')}"):
            note.unlink(missing_ok=True)

    def __enter__(self) -> Upcalls:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _event(line: str) -> dict[str, str]:
    head, _, tail = line.rpartition(" | ")
    stamp, process, level, message = head.split(" ", 3)
    fields = dict(word.split("=", 1) for word in tail.strip().split(" "))
    return {"time": stamp, "process": process, "level": level.rstrip(":"), "message": message, **fields}


def _toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    # json's strings and numbers are TOML's.
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def user_callout(uid: int = USER_UID, **fields: Any) -> str:
    """Callout info of an ordinary user's request to the loopback acceptor."""
    return format_callout(**{**_FIELDS, "uid": uid, "gid": uid, **fields})


def machine_callout(flags: str = "r", **fields: Any) -> str:
    """Callout info of a request for the machine's credential."""
    return format_callout(**{**_FIELDS, "uid": 0, "gid": 0, "flags": flags, **fields})


_FIELDS: dict[str, Any] = {
    "secid": 42,
    "mechanism": "krb5",
    "flags": "",
    "service_type": "i",
    "lustre_service": 1,
    "target_nid": LOOPBACK_NID,
    "obd_name": "lgss-MDT0000-mdc",
    "self_nid": LOOPBACK_NID,
    "pid": 0,
    "client_uuid": "b8ae9dc4-7c1d-4c4c-8f2e-1d8f2a8f3f10",
}
