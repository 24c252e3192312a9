"""A Lustre client's upcalls end to end: type lgssc, init_channel, and a server with real Kerberos."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from lustre import ALICE, PARTNER, PRIVATE, as_exchanges, ask, configure, established, parameter
from server import LustreServer
from testmod import Report

from lgss_keyring.formats import payload

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded", "nothing_left")]


def test_mount_as_root(server: LustreServer) -> None:
    """The MGC's upcall, while the mount's lock is held."""
    report = ask(0, flags="rmo", kernel={"hold": True}, lustre_service=0)
    context = established(server, report)
    assert context.initiator == "lustre_root/client.lgss.test@LGSS.TEST"
    assert context.target == "lustre_mgs/server.lgss.test@LGSS.TEST"
    assert (context.request.uid, context.request.gid, context.request.lustre_svc) == (0, 0, 0)
    assert report.request_us < report.update_us


def test_user(server: LustreServer, ticket: None) -> None:
    subprocess.run(["usermod", "-g", "1", "alice"], check=True)
    try:
        context = established(server, ask(ALICE))
    finally:
        subprocess.run(["usermod", "-g", "1000", "alice"], check=True)
    assert context.initiator == "alice@LGSS.TEST"
    assert context.target == "lustre_mds/server.lgss.test@LGSS.TEST"
    assert context.request.obd_name == b"lustre-MDT0000-mdc" and context.request.lustre_svc == 1
    # The primary group is passwd's, not what the callout says.
    assert (context.request.uid, context.request.gid) == (ALICE, 1)


def test_user_without_a_passwd_entry(server: LustreServer) -> None:
    uid = 61999
    cache = Path(f"/tmp/krb5cc_{uid}")
    subprocess.run(["kinit", "-c", str(cache), "alice"], input="password\n", text=True, check=True)
    os.chown(cache, uid, uid)
    try:
        context = established(server, ask(uid))
    finally:
        cache.unlink()
    assert (context.request.uid, context.request.gid) == (uid, uid)


def test_root_asks_for_a_user(server: LustreServer, ticket: None) -> None:
    assert established(server, ask(0, ALICE)).initiator == "alice@LGSS.TEST"


def test_machine_from_within_a_users_process(server: LustreServer, ticket: None) -> None:
    """An OSC's context that has run out: the machine's credential, nothing of the user's."""
    context = established(server, ask(ALICE, 0, "r", kernel={"root": True}))
    assert context.initiator == "lustre_root/client.lgss.test@LGSS.TEST"
    assert context.request.uid == 0


def test_early_updates_are_survived(server: LustreServer, ticket: None) -> None:
    report = ask(ALICE, kernel={"bind_delay_ms": 5000})
    established(server, report)
    assert report.early_updates >= 3
    assert report.update_us - report.bound_us < 1_500_000


def test_acceptor_in_another_realm(ticket: None) -> None:
    with LustreServer(Path("/etc/lustre-partner.keytab")) as server:
        context = established(server, ask(ALICE, target_nid=PARTNER))
    assert context.target == "lustre_mds/server.partner.test@PARTNER.TEST"
    assert context.initiator == "alice@LGSS.TEST"


@pytest.mark.parametrize(("flags", "bits"), [("", 0), ("rmo", 7)])
def test_gssnull(server: LustreServer, flags: str, bits: int) -> None:
    uid = 0 if flags else ALICE
    report = ask(uid, flags=flags, mechanism="gssnull")
    context = established(server, report)
    decoded = payload.unpack(report.payload)
    assert isinstance(decoded, payload.ContextPayload)
    # What the server has sent.
    assert decoded.context == context.request.token[::-1]
    assert context.request.lustre_svc == 1 | 1 << 16
    assert len(context.request.token) == 8 and context.request.token[4:] == bytes([0, 0, 0, bits])


def test_a_hundred_at_once_of_ten_users_and_root(server: LustreServer, patient_rule: None) -> None:
    """None lost, none wrong."""
    uids = [*range(61400, 61410), 0]
    for uid in uids[:-1]:
        name = f"many{uid}"
        # It is there already if this test ran before, with another front.
        command = ["kadmin.local", "-r", "LGSS.TEST", "addprinc", "-pw", "password", name]
        subprocess.run(command, check=False, capture_output=True)
        cache = f"/tmp/krb5cc_{uid}"
        subprocess.run(
            ["kinit", "-c", cache, name], input="password\n", text=True, check=True, stdout=subprocess.DEVNULL
        )
        os.chown(cache, uid, uid)
    reports: dict[int, tuple[int, Report]] = {}

    def one(number: int, uid: int) -> None:
        kernel = {"timeout_ms": 300000}
        reports[number] = (uid, ask(uid, flags="" if uid else "r", kernel=kernel))

    configure("[upcall]\ntimeout = 300\nmachine_wait = 60\n")
    with parameter("request_limit_ms", 300000):
        threads = [threading.Thread(target=one, args=(i, uids[i % len(uids)])) for i in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for uid in uids[:-1]:
        Path(f"/tmp/krb5cc_{uid}").unlink()
    assert len(reports) == 100
    for uid, report in reports.values():
        context = established(server, report)
        wanted = f"many{uid}" if uid else "lustre_root/client.lgss.test"
        assert context.initiator == f"{wanted}@LGSS.TEST" and context.request.uid == uid
    assert len(server.contexts) == 100


def test_parallel_mounts_make_one_as_exchange(server: LustreServer) -> None:
    before = as_exchanges()
    reports: list[Report] = []
    threads = [threading.Thread(target=lambda: reports.append(ask(0, flags="r"))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {established(server, report).initiator for report in reports} == {
        "lustre_root/client.lgss.test@LGSS.TEST"
    }
    assert as_exchanges() == before + 1
    kept = [path for path in PRIVATE.glob("*@LGSS.TEST.*") if path.suffix != ".new"]
    assert {path.stat().st_mode & 0o777 for path in kept} == {
        0o600
    } and PRIVATE.stat().st_mode & 0o777 == 0o700
    established(server, ask(0, flags="r"))
    assert as_exchanges() == before + 1
