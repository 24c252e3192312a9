"""Faults of acceptor, KDC and credentials, each through the real kernel.

In each the caller of request_key(2) is back within 100 ms, the key carries the right
error within a second, or at the stated timeout for silence, the log says why, and
nothing is left (the fixture nothing_left).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from tests.support import peers
from tests.support.requestor import Requestor
from tests.support.site import HOST, LOOPBACK_NID, USER_UID, Site, Upcalls, machine_callout, user_callout

from .failures import ANSWERED, failed
from .waiting import pace, within

pytestmark = pytest.mark.vm


@contextmanager
def listening_nowhere() -> Iterator[int]:
    with peers.unused_port() as port:
        yield port


@contextmanager
def port_of(peer: peers.Peer) -> Iterator[int]:
    with peer:
        yield peer.port


@pytest.mark.parametrize(
    ("peer", "number", "kind", "limit"),
    [
        (listening_nowhere, errno.ECONNREFUSED, "acceptor-unreachable", ANSWERED),
        (lambda: port_of(peers.Closing()), errno.ECONNRESET, "acceptor-closed", ANSWERED),
        (lambda: port_of(peers.Garbage()), errno.EPROTO, "malformed-reply", ANSWERED),
        (lambda: port_of(peers.HugeRecord()), errno.EPROTO, "malformed-reply", ANSWERED),
        # Two tries of reply_timeout, 1 s here.
        (lambda: port_of(peers.Silent()), errno.ETIMEDOUT, "acceptor-silent", 3.0),
    ],
    ids=["not-listening", "closing", "garbage", "huge", "silent"],
)
def test_acceptor_is_out_of_order(
    site: Site,
    user: Requestor,
    peer: Callable[[], AbstractContextManager[int]],
    number: int,
    kind: str,
    limit: float,
) -> None:
    with peer() as port, site.upcalls({"rpcsec_gss": {"port": port}}) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        failed(answer, upcalls, number, kind, f"127.0.0.1:{port}", limit)
        if kind == "acceptor-silent":
            assert answer.updated is not None and answer.updated > 1.9 * site.limit
            assert any("trying once more" in event["message"] for event in upcalls.log())


@pytest.mark.parametrize(
    ("fault", "number", "kind", "hint"),
    [
        (
            "bad-verifier",
            errno.EACCES,
            "bad-verifier",
            "; the reply was changed on its way, or",
        ),
        (
            "wrong-window",
            errno.EACCES,
            "bad-verifier",
            "; the reply was changed on its way, or",
        ),
        (
            "no-verifier",
            errno.EPROTO,
            "bad-verifier",
            "; the reply was changed on its way, or",
        ),
        ("no-handle", errno.EPROTO, "channel", "; the acceptor has a defect, or another service"),
        ("trailing-bytes", errno.EPROTO, "malformed-reply", "; check that an RPCSEC_GSS server listens"),
        ("gss-failure", errno.EACCES, "refused-by-acceptor", "; see the acceptor's log"),
        ("continue-forever", errno.EACCES, "mechanism", "; the acceptor has a defect, or another service"),
        ("bad-token", errno.EACCES, "mechanism", "; the acceptor has a defect, or another service"),
        ("restart-always", errno.EACCES, "start-again", "; see the acceptor's log"),
    ],
)
def test_acceptor_answers_wrongly(
    site: Site, user: Requestor, fault: str, number: int, kind: str, hint: str
) -> None:
    acceptor = site.new_acceptor("--fault", fault)
    with site.upcalls({"rpcsec_gss": {"port": acceptor.port}}) as upcalls:
        failed(user.ask(upcalls.name(), user_callout()), upcalls, number, kind, hint)
    acceptor.close()


def test_replies_to_others_only(site: Site, user: Requestor) -> None:
    acceptor = site.new_acceptor("--fault", "other-xid")
    with site.upcalls({"rpcsec_gss": {"port": acceptor.port}}) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        failed(answer, upcalls, errno.ETIMEDOUT, "acceptor-silent", limit=3)
    acceptor.close()


@pytest.mark.parametrize("fault", ["restart-once", "drop-once", "one-byte-fragments"])
def test_acceptor_recovers(site: Site, user: Requestor, fault: str) -> None:
    acceptor = site.new_acceptor("--fault", fault)
    with site.upcalls({"rpcsec_gss": {"port": acceptor.port}}) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        assert isinstance(payload.unpack(answer.data), payload.ContextPayload)
        messages = [event["message"] for event in upcalls.events(answer.key)]
    acceptor.close()
    assert any("trying once more" in message for message in messages) == (fault != "one-byte-fragments")


def test_another_program_number(site: Site, user: Requestor) -> None:
    with site.upcalls({"rpcsec_gss": {"program": 0x20000001}}) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        failed(answer, upcalls, errno.EPROTONOSUPPORT, "rpc-refused", "PROG_UNAVAIL")


def test_target_without_an_ip_address(upcalls: Upcalls, user: Requestor) -> None:
    answer = user.ask(upcalls.name(), user_callout(target_nid=13 << 48 | 5))
    failed(answer, upcalls, errno.EHOSTUNREACH, "name", "5@gni")


@contextmanager
def kdc_stopped(site: Site) -> Iterator[None]:
    site.realm.stop_kdc()
    try:
        yield
    finally:
        site.realm.start_kdc()


def test_kdc_down(site: Site, upcalls: Upcalls, user: Requestor, root: Requestor, private: Path) -> None:
    """With no ticket kept; test_tickets_of_the_machine.py has the case where there are some."""
    with kdc_stopped(site):
        failed(
            user.ask(upcalls.name(), user_callout()), upcalls, errno.EHOSTUNREACH, "kdc-unreachable", "KDC"
        )
        failed(
            root.ask(upcalls.name(), machine_callout()), upcalls, errno.EHOSTUNREACH, "kdc-unreachable", "KDC"
        )
    # The known failure is remembered for 2 s; after that nothing is left of it.
    assert within(5, lambda: root.ask(upcalls.name(), machine_callout()).error == 0)
    answer = root.ask(upcalls.name(), machine_callout())
    assert isinstance(payload.unpack(answer.data), payload.ContextPayload)


def test_kdc_silent(site: Site, user: Requestor) -> None:
    life = pace.whole(3)
    with site.upcalls(options=f"--timeout {life}") as upcalls:
        site.realm.pause_kdc()
        try:
            answer = user.ask(upcalls.name(), user_callout())
        finally:
            site.realm.resume_kdc()
        message = failed(answer, upcalls, errno.ETIMEDOUT, "limit", f"no answer within {life - 1} s", 2.7)
    assert "getting a ticket" in message and "--timeout in the request-key rule" in message


def test_no_ticket(upcalls: Upcalls) -> None:
    uid = USER_UID + 165
    with Requestor(uid) as stranger:
        answer = stranger.ask(upcalls.name(), user_callout(uid))
        message = failed(answer, upcalls, errno.ENOKEY, "no-ticket", "kinit")
    assert f"krb5cc_{uid}" in message and f"uid {uid}" in message


def test_expired_ticket(site: Site, upcalls: Upcalls) -> None:
    uid = USER_UID + 164
    site.realm.kinit("alice", uid, uid, lifetime=1)
    time.sleep(2.1)
    with Requestor(uid) as late:
        failed(
            late.ask(upcalls.name(), user_callout(uid)), upcalls, errno.EKEYEXPIRED, "ticket-expired", "kinit"
        )


def test_unreadable_ticket(site: Site, upcalls: Upcalls) -> None:
    """Another's file where the user's cache should be: read as the user, so not at all."""
    uid = USER_UID + 203
    site.realm.kinit("alice", 0, 0)
    site.realm.ccache_of(0).rename(site.realm.ccache_of(uid))
    with Requestor(uid) as thief:
        answer = thief.ask(upcalls.name(), user_callout(uid))
    decoded = payload.unpack(answer.data)
    assert decoded == payload.FailurePayload(errno.ENOKEY, 7 << 16)
    assert f"krb5cc_{uid}" in upcalls.events(answer.key)[-1]["message"]


def test_wrong_service_principal(site: Site, user: Requestor) -> None:
    with site.upcalls({"hosts": {"127.0.0.1": "elsewhere.test"}}) as upcalls:
        answer = user.ask(upcalls.name(), user_callout())
        message = failed(answer, upcalls, errno.EKEYREJECTED, "service-unknown", "lustre_mds@elsewhere.test")
        assert f"reverse DNS or [hosts] (in {upcalls.config_file})" in message


@pytest.mark.parametrize(
    ("lock", "unlock", "number", "kind", "cure"),
    [
        ("-allow_tix", "+allow_tix", errno.EKEYREJECTED, "service-unknown", "unlock it, if it is there"),
        ("-allow_svr", "+allow_svr", errno.EKEYREJECTED, "service-locked", "kadmin modprinc +allow_svr"),
        (
            "-expire yesterday",
            "-expire never",
            errno.EKEYEXPIRED,
            "service-expired",
            "modprinc -expire never",
        ),
    ],
)
def test_service_principal_is_locked(
    site: Site, user: Requestor, upcalls: Upcalls, lock: str, unlock: str, number: int, kind: str, cure: str
) -> None:
    service = f"lustre_oss/{HOST}"
    site.realm.administer("modprinc", *lock.split(), service)
    try:
        answer = user.ask(upcalls.name(), user_callout(lustre_service=2))
        assert cure in failed(answer, upcalls, number, kind, "lustre_oss@localhost")
    finally:
        site.realm.administer("modprinc", *unlock.split(), service)


def test_keytab_missing(site: Site, root: Requestor) -> None:
    with site.upcalls({"krb5": {"keytab": str(site.directory / "none")}}) as upcalls:
        failed(
            root.ask(upcalls.name(), machine_callout()),
            upcalls,
            errno.ENOKEY,
            "keytab-missing",
            "No such file",
        )


def test_keytab_without_a_fitting_principal(site: Site, root: Requestor, upcalls: Upcalls) -> None:
    answer = root.ask(upcalls.name(), machine_callout("m"))
    failed(answer, upcalls, errno.ENOKEY, "not-in-keytab", "lustre_mds/localhost")


@pytest.mark.parametrize(
    ("command", "number", "kind", "cures"),
    [
        ("delprinc -force {}", errno.ENOKEY, "client-unknown", ["create the principal"]),
        (
            "modprinc -allow_tix {}",
            errno.EKEYREVOKED,
            "client-revoked",
            ["modprinc +allow_tix ", "modprinc -unlock "],
        ),
        (
            "modprinc -pwexpire yesterday {}",
            errno.EKEYEXPIRED,
            "password-expired",
            ["modprinc -pwexpire never", "ktadd"],
        ),
        ("modprinc +needchange {}", errno.EKEYEXPIRED, "password-expired", ["-needchange", "ktadd"]),
        ("modprinc -expire yesterday {}", errno.EKEYEXPIRED, "client-expired", ["modprinc -expire never"]),
    ],
)
def test_kdc_refuses_the_machine(
    site: Site, root: Requestor, tmp_path: Path, command: str, number: int, kind: str, cures: list[str]
) -> None:
    name = f"host/localhost-{kind}{command.count('needchange')}"
    site.realm.add_principal(name)
    keytab = site.realm.extract_keytab(tmp_path / "keytab", name)
    site.realm.administer(*command.format(name).split())
    settings = {"krb5": {"keytab": str(keytab), "principal": name}}
    with site.upcalls(settings) as upcalls:
        message = failed(root.ask(upcalls.name(), machine_callout()), upcalls, number, kind, name)
        assert not [cure for cure in cures if cure not in message], message


def test_no_name_for_the_target(site: Site, user: Requestor) -> None:
    with site.upcalls({"names": {"reverse_dns": False}}) as upcalls:
        answer = user.ask(upcalls.name(), user_callout(target_nid=LOOPBACK_NID + 1))
        failed(answer, upcalls, errno.EHOSTUNREACH, "no-host-name", "reverse_dns is off")


@pytest.mark.parametrize("content", [b"no keytab\n", b"", None], ids=["garbage", "empty", "folder"])
def test_keytab_is_none(site: Site, root: Requestor, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keytab"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with site.upcalls({"krb5": {"keytab": str(path)}}) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        message = failed(answer, upcalls, errno.ENOKEY, "keytab-unreadable", f"cannot read keytab {path}: ")
        assert "make it anew (kadmin: ktadd), see it by klist -k" in message


def test_keytab_has_no_entry(site: Site, root: Requestor, tmp_path: Path) -> None:
    broken = tmp_path / "keytab"
    broken.write_bytes(b"\5\2\0\0\0\x20" + b"\xaa" * 100)
    with site.upcalls({"krb5": {"keytab": str(broken)}}) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout())
        failed(answer, upcalls, errno.ENOKEY, "not-in-keytab", "it has nothing")
    with site.upcalls({"krb5": {"keytab": "/proc/self/mem-none"}}) as upcalls:
        failed(root.ask(upcalls.name(), machine_callout()), upcalls, errno.ENOKEY, "keytab-missing")


def test_keytab_of_another_key_version(site: Site, root: Requestor) -> None:
    """The principal's key was changed in the KDC, its keytab not renewed."""
    principal = "host/stale"
    site.realm.add_principal(principal)
    keytab = site.realm.extract_keytab(site.directory / "stale.keytab", principal)
    site.realm._run("kadmin.local", "-r", site.realm.name, "cpw", "-randkey", principal)
    settings = {"krb5": {"keytab": str(keytab)}, "hosts": {"127.0.0.2": "stale"}}
    with site.upcalls(settings) as upcalls:
        answer = root.ask(upcalls.name(), machine_callout(self_nid=LOOPBACK_NID + 1))
        failed(answer, upcalls, errno.EKEYREJECTED, "wrong-key", "host/stale")
