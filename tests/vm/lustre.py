"""A Lustre client's upcalls in the virtual machine: what its tests share."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server import WINDOW, Context, LustreServer
from test_product import (
    PROGRAM,
    RULE,
    as_alice,
    callout_to_server,
    installed_rule,
    journal,
    journal_of,
    none_left,
    processes,
    soon,
)
from testmod import PARAMETERS, Report, trigger

from lgss_keyring.formats import payload
from lgss_keyring.formats.nid import Nid
from lgss_keyring.formats.payload import ContextPayload, FailurePayload, Krb5Context
from tests.support import table

PARTNER = Nid.parse("192.168.78.1@tcp").to_int()
CONFIG = Path("/etc/lgss_keyring.toml")
KEYTAB = Path("/etc/krb5.keytab")
PRIVATE = Path("/run/lgss")
ALICE = 1000

secids = iter(range(2000, 100000))


def ask(
    uid: int,
    callout_uid: int | None = None,
    flags: str = "",
    kernel: dict[str, Any] | None = None,
    secid: int | None = None,
    **fields: Any,
) -> Report:
    """Let the module request a key as Lustre does; the key's name has the secid, or one of its own."""
    installed_rule()
    owner = uid if callout_uid is None else callout_uid
    secid = next(secids) if secid is None else secid
    callout = callout_to_server(owner, flags=flags, secid=secid, **{"pid": 1, **fields})
    return trigger(f"{owner}@{secid:x}", callout, uid=uid, **{"timeout_ms": 90000, **(kernel or {})})


def established(server: LustreServer, report: Report) -> Context:
    """The server's own view of the context, after comparing the keys."""
    assert report.error == 0, (os.strerror(-report.error), [e["MESSAGE"] for e in journal_of(report.serial)])
    assert report.stage == "update" and report.malformed == 0 and report.seq_win == WINDOW
    decoded = payload.unpack(report.payload)
    assert isinstance(decoded, ContextPayload)
    context = server.contexts[decoded.handle]
    if context.keys is not None:
        ours = Krb5Context.unpack(decoded.context)
        assert (ours.ke, ours.ki, ours.kc) == (context.keys.ke, context.keys.ki, context.keys.kc)
        assert ours.flags & 3 == 3 and ours.endtime > time.time() + 60
    return context


def failed(report: Report, number: int, kind: str, major: int = 0) -> str:
    """The journal's words for a failure, after checking what the kernel got."""
    assert report.stage == "update" and report.malformed == 0
    assert -report.error == number, (
        os.strerror(-report.error),
        [e["MESSAGE"] for e in journal_of(report.serial)],
    )
    assert payload.unpack(report.payload) == FailurePayload(number, major)
    entry = journal_of(report.serial)[-1]
    assert entry["LGSS_ERROR"] == kind, entry["MESSAGE"]
    message: str = entry["MESSAGE"]
    table.judge(kind, errno.errorcode[number], message)
    return message


def mount(secid: int | None = None, **fields: Any) -> Report:
    """The upcall of a mount by root, which holds its lock; each secid has a target of its own."""
    secid = next(secids) if secid is None else secid
    fields = {"flags": "r", "obd_name": f"mount{secid}-mdc", "kernel": {"hold": True}, **fields}
    return ask(0, secid=secid, **fields)


def entries_of_mount(secid: int) -> list[dict[str, Any]]:
    """What the journal has of a mount's upcalls, oldest first."""
    return [entry for entry in journal() if entry.get("LGSS_TARGET", "").startswith(f"mount{secid}-mdc@")]


def rejected(report: Report, number: int, kind: str) -> str:
    """The journal's words for a mount whose request_key(2) has failed, after checking that."""
    assert report.stage == "request_key", report
    assert -report.error == number, os.strerror(-report.error)
    secid = int(report.description.partition("@")[2], 16)
    assert soon(lambda: bool(entries_of_mount(secid)))
    entry = entries_of_mount(secid)[-1]
    assert entry["LGSS_ERROR"] == kind, entry["MESSAGE"]
    message: str = entry["MESSAGE"]
    table.judge(kind, errno.errorcode[number], message)
    return message


@pytest.fixture
def server() -> Iterator[LustreServer]:
    with LustreServer() as server:
        yield server


@pytest.fixture
def ticket() -> Iterator[None]:
    as_alice("kinit", "alice", stdin="password\n")
    yield
    as_alice("kdestroy", "-q")


@pytest.fixture
def nothing_left() -> Iterator[None]:
    shutil.rmtree(PRIVATE, ignore_errors=True)
    yield
    assert none_left(), processes()
    CONFIG.unlink(missing_ok=True)


@pytest.fixture
def patient_rule() -> Iterator[None]:
    """The installed rule with more time for the front: with a hundred upcalls at once a
    mount's word comes late under TCG, and the front waits for it."""
    before = RULE.read_text()
    RULE.write_text(before.replace(f"{PROGRAM} ", f"{PROGRAM} --timeout 300 "))
    yield
    RULE.write_text(before)


def configure(text: str) -> None:
    CONFIG.write_text(text)


@contextlib.contextmanager
def parameter(name: str, value: int) -> Iterator[None]:
    path = PARAMETERS / name
    before = path.read_text()
    path.write_text(str(value))
    try:
        yield
    finally:
        path.write_text(before)


def systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], check=True)


def as_exchanges() -> int:
    """How many AS exchanges the KDC has logged."""
    text = subprocess.check_output(
        ["journalctl", "--no-pager", "-b", "-u", "krb5-kdc", "-o", "cat"], text=True
    )
    return sum("AS_REQ" in line and "ISSUE" in line for line in text.splitlines())
