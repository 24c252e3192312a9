"""The product as installed, where only a machine of its own can show it.

A stock kernel, systemd with its journal, AppArmor, a clock that may be turned, the
realm of `kdc-setup`, and Lustre's side of the kernel by `lgss_testmod`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.formats import payload
from lgss_keyring.formats.callout import format_callout
from lgss_keyring.formats.nid import Nid
from tests.support import requestor
from tests.support.realm import Realm
from tests.support.requestor import Answer, Requestor
from tests.support.site import AcceptorProcess, Site, user_callout
from tests.support.stage import Rule

pytestmark = pytest.mark.vm

PROGRAM = Path("/usr/sbin/lgss_keyring")
RULE = Path("/etc/request-key.d/lgssc.conf")
SERVER_KEYTAB = Path("/etc/lustre-server.keytab")
SERVER = Nid.parse("192.168.77.1@tcp").to_int()
CLIENT = Nid.parse("192.168.77.2@tcp").to_int()
# TCG is some 20 times slower than a real machine; what is judged here is not time.
PATIENCE = 120.0


class InstalledRealm(Realm):
    """What stands in for `Site.realm`: kdc-setup has made the realm, as a service."""

    def __init__(self) -> None:
        self.env = {}
        self._principals = set()


@pytest.fixture(scope="module")
def acceptor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AcceptorProcess]:
    """An acceptor with the server's keytab, on the default port: no configuration."""
    directory = tmp_path_factory.mktemp("acceptor")
    # Later options win. The server's address is one of loopback's, made by the image.
    acceptor = AcceptorProcess(InstalledRealm(), SERVER_KEYTAB, directory, "--listen", "0.0.0.0:20988")
    yield acceptor
    acceptor.close()


@pytest.fixture
def rule() -> Iterator[str]:
    """The prefix of `user` keys that the installed program serves, without any option."""
    prefix = f"lgss:product.{time.monotonic_ns()}:"
    with Rule(f"{prefix}*", PROGRAM):
        yield prefix


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    before, requestor.patience = requestor.patience, PATIENCE
    yield
    requestor.patience = before


def callout_to_server(uid: int = 0, **fields: Any) -> str:
    values = {
        "secid": 7, "uid": uid, "gid": uid, "lustre_service": 1, "target_nid": SERVER,
        "obd_name": "lustre-MDT0000-mdc", "self_nid": CLIENT, **fields,
    }  # fmt: skip
    return format_callout(**values)


def journal(**fields: object) -> list[dict[str, Any]]:
    """The entries of lgss_keyring with these fields, oldest first."""
    subprocess.run(["journalctl", "--sync"], check=True)
    matches = [f"{name}={value}" for name, value in fields.items()]
    command = ["journalctl", "--no-pager", "--boot", "--output=json", "--identifier=lgss_keyring", *matches]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in text.splitlines()]


def journal_of(key: int) -> list[dict[str, Any]]:
    """The entries of one upcall; its last one is written after the key's update."""
    end = time.monotonic() + 30
    while not (entries := journal(LGSS_KEY=key)) and time.monotonic() < end:
        time.sleep(0.2)
    return entries


def established(answer: Answer) -> payload.ContextPayload:
    assert answer.error == 0 and answer.read_error == 0, answer
    decoded = payload.unpack(answer.data)
    assert isinstance(decoded, payload.ContextPayload), journal_of(answer.key)[-1]["MESSAGE"]
    return decoded


def failed(answer: Answer) -> dict[str, Any]:
    """The failure's journal entry."""
    assert isinstance(payload.unpack(answer.data), payload.FailurePayload), answer
    return journal_of(answer.key)[-1]


def processes() -> list[str]:
    """All processes of the program, zombies too."""
    listed = subprocess.check_output(["ps", "-ww", "-eo", "pid,stat,comm,args"], text=True).splitlines()
    return [
        line for line in listed if "lgss_keyring" in line and "pytest" not in line and "testing" not in line
    ]


def soon(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def none_left(seconds: float = 30) -> bool:
    return soon(lambda: not processes(), seconds)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert none_left(), processes()


def as_alice(*command: str, stdin: str = "") -> None:
    subprocess.run(
        command, input=stdin, text=True, check=True, capture_output=True,
        user=1000, group=1000, extra_groups=[], env={"PATH": os.environ["PATH"], "HOME": "/home/alice"},
    )  # fmt: skip


@pytest.fixture
def alice() -> Iterator[Requestor]:
    """A process of alice's, who has run kinit as every user does."""
    assert pwd.getpwnam("alice").pw_uid == 1000
    as_alice("kinit", "alice", stdin="password\n")
    with Requestor(1000) as user:
        yield user
    as_alice("kdestroy")


def installed_rule() -> None:
    assert RULE.read_text().splitlines()[-1].split()[:5] == ["create", "lgssc", "*", "*", str(PROGRAM)]


# systemd, the journal, no configuration at all.


def test_no_configuration_is_needed(acceptor: AcceptorProcess, rule: str, alice: Requestor) -> None:
    assert not Path("/etc/lgss_keyring.toml").exists()
    context = established(alice.ask(f"{rule}1", callout_to_server(1000)))
    (known,) = [c for c in acceptor.contexts() if c["handle"] == context.handle.hex()]
    assert known["initiator"] == "alice@LGSS.TEST"
    assert known["target"] == "lustre_mds/server.lgss.test@LGSS.TEST"
    with Requestor(0) as root:
        context = established(root.ask(f"{rule}2", callout_to_server(flags="r")))
    (known,) = [c for c in acceptor.contexts() if c["handle"] == context.handle.hex()]
    assert known["initiator"] == "lustre_root/client.lgss.test@LGSS.TEST"


def test_journal_has_the_fields_and_no_secret(acceptor: AcceptorProcess, rule: str, alice: Requestor) -> None:
    answer = alice.ask(f"{rule}1", callout_to_server(1000))
    context = established(answer)
    (entry,) = journal_of(answer.key)
    assert entry["SYSLOG_IDENTIFIER"] == "lgss_keyring" and entry["_UID"] == "0"
    assert entry["_TRANSPORT"] == "journal" and entry["PRIORITY"] == "6"
    assert entry["LGSS_UID"] == "1000" and entry["LGSS_STEP"] == "updated"
    assert entry["LGSS_INITIATOR"] == "alice@LGSS.TEST" and entry["LGSS_MECH"] == "krb5"
    assert entry["LGSS_TARGET"] == f"lustre-MDT0000-mdc@0x{SERVER:x}"
    assert float(entry["LGSS_MS"]) > 0
    assert "initiator alice@LGSS.TEST" in entry["MESSAGE"]
    keys = payload.Krb5Context.unpack(context.context)
    whole = subprocess.check_output(["journalctl", "--no-pager", "--boot", "--output=export"])
    for secret in (keys.ke, keys.ki, keys.kc):
        assert secret not in whole and secret.hex().encode() not in whole

    as_alice("kdestroy")
    entry = failed(alice.ask(f"{rule}2", callout_to_server(1000)))
    assert entry["PRIORITY"] == "4" and entry["LGSS_ERROR"] == "no-ticket" and entry["LGSS_ERRNO"] == "ENOKEY"
    assert entry["LGSS_GSS_MAJOR"] == "0x00070000"
    assert entry["LGSS_UID"] == "1000" and entry["LGSS_TARGET"] == f"lustre-MDT0000-mdc@0x{SERVER:x}"
    assert entry["_UID"] == "0" and entry["_TRANSPORT"] == "journal"
    assert "kinit" in entry["MESSAGE"] and "krb5cc_1000" in entry["MESSAGE"]
    as_alice("kinit", "alice", stdin="password\n")


def test_200_at_once_of_20_users() -> None:
    """Every one answered, each with its own user's context, nothing left."""
    uids = list(range(61400, 61420))
    with Site() as site:
        for uid in uids:
            site.realm.add_principal(f"user{uid}")
            site.realm.extract_keytab(site.realm.directory / "user.keytab", f"user{uid}")
            site.realm.kinit(f"user{uid}", uid, uid)
        settings: dict[str, dict[str, Any]] = {
            "upcall": {"timeout": 900},
            "rpcsec_gss": {"connect_timeout": 300, "reply_timeout": 300},
            "log": {"level": "info"},
        }
        with site.upcalls(settings, "--timeout 1000") as upcalls:
            asked = [uid for uid in uids for _ in range(10)]
            with contextlib.ExitStack() as stack:
                requestors = [stack.enter_context(Requestor(uid)) for uid in asked]
                for uid, one in zip(asked, requestors, strict=True):
                    one.start(upcalls.name(), user_callout(uid), wait=900)
                answers = [one.result() for one in requestors]
        accepted = {c["handle"]: c["initiator"] for c in site.acceptor.contexts()}
    for uid, answer in zip(asked, answers, strict=True):
        assert accepted[established(answer).handle.hex()] == f"user{uid}@LGSS.TEST"
    assert len({established(answer).handle for answer in answers}) == 200
    assert none_left()
    # The requestors are gone, and with their sessions all that was asked for.
    assert soon(lambda: upcalls.tag not in Path("/proc/keys").read_text())
    since = {str(answer.key) for answer in answers}
    assert sum(e.get("LGSS_STEP") == "updated" and e["LGSS_KEY"] in since for e in journal()) == 200


# The KDC as a service.


@pytest.fixture
def kdc() -> Iterator[Callable[[str], None]]:
    """systemctl for the KDC, which runs as before afterwards."""

    def control(what: str) -> None:
        words = ["kill", "-s", what] if what.isupper() else [what]
        subprocess.run(["systemctl", *words, "krb5-kdc"], check=True)

    yield control
    # No signal reaches a service that was stopped; a restart would wait for a silent one.
    subprocess.run(["systemctl", "kill", "-s", "CONT", "krb5-kdc"], stderr=subprocess.DEVNULL)
    control("restart")


def test_kdc_stopped_and_back(
    acceptor: AcceptorProcess, rule: str, alice: Requestor, kdc: Callable[[str], None]
) -> None:
    kdc("stop")
    entry = failed(alice.ask(f"{rule}1", callout_to_server(1000)))
    assert entry["LGSS_ERROR"] == "kdc-unreachable" and entry["LGSS_ERRNO"] == "EHOSTUNREACH"
    assert "[realms]" in entry["MESSAGE"]
    kdc("start")
    time.sleep(2.5)  # the failure's life
    established(alice.ask(f"{rule}1", callout_to_server(1000)))


def test_kdc_silent_and_back(acceptor: AcceptorProcess, alice: Requestor, kdc: Callable[[str], None]) -> None:
    prefix = f"lgss:product.{time.monotonic_ns()}:"
    with Rule(f"{prefix}*", PROGRAM, "--timeout 15"):
        kdc("STOP")
        answer = alice.ask(f"{prefix}1", callout_to_server(1000))
        entry = failed(answer)
        assert entry["LGSS_ERROR"] == "limit" and entry["LGSS_ERRNO"] == "ETIMEDOUT"
        assert "no answer within 14 s" in entry["MESSAGE"] and "--timeout" in entry["MESSAGE"]
        assert answer.updated is not None and 13 < answer.updated < 25
        kdc("CONT")
        time.sleep(2.5)
        established(alice.ask(f"{prefix}1", callout_to_server(1000)))


# A clock ten minutes ahead of ours, for one process: one machine has but one, and a
# time namespace does not shift it.
AHEAD = {"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "FAKETIME": "+600s"}


@pytest.fixture
def kdc_ahead(kdc: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Restart the KDC with such a clock, when called."""
    dropin = Path("/run/systemd/system/krb5-kdc.service.d/ahead.conf")

    def restart() -> None:
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        kdc("restart")

    def ahead() -> None:
        dropin.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"Environment={name}={value}" for name, value in AHEAD.items()]
        dropin.write_text("\n".join(["[Service]", *lines, ""]))
        restart()

    yield ahead
    dropin.unlink(missing_ok=True)
    restart()


def test_clock_skew_of_ten_minutes_with_the_kdc(
    acceptor: AcceptorProcess, rule: str, alice: Requestor, kdc_ahead: Callable[[], None]
) -> None:
    kdc_ahead()
    answer = alice.ask(f"{rule}1", callout_to_server(1000))
    entry = failed(answer)
    assert entry["LGSS_ERROR"] == "clock-skew" and entry["LGSS_ERRNO"] == "EKEYREJECTED"
    assert "Clock skew too great" in entry["MESSAGE"] and "synchronise" in entry["MESSAGE"]


def test_clock_skew_of_ten_minutes_with_the_acceptor(alice: Requestor, tmp_path: Path) -> None:
    """The acceptor's refusal is in its token: libkrb5 finds the error code there."""
    realm = InstalledRealm()
    realm.env = AHEAD
    acceptor = AcceptorProcess(realm, SERVER_KEYTAB, tmp_path, "--listen", "0.0.0.0:0")
    prefix = f"lgss:product.{time.monotonic_ns()}:"
    config = tmp_path / "config.toml"
    config.write_text(f"[rpcsec_gss]\nport = {acceptor.port}\n")
    try:
        with Rule(f"{prefix}*", PROGRAM, f"--config {config}"):
            entry = failed(alice.ask(f"{prefix}1", callout_to_server(1000)))
    finally:
        acceptor.close()
    assert entry["LGSS_ERROR"] == "clock-skew" and entry["LGSS_ERRNO"] == "EKEYREJECTED", entry["MESSAGE"]
