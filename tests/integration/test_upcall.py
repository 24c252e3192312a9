"""Upcalls that succeed, through the real kernel."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from tests.support import keyutils, peers
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, Upcalls, machine_callout, user_callout

from .answers import established, proven
from .failures import failed
from .waiting import keys_of, pace, upcall_processes, within

pytestmark = pytest.mark.vm


def test_user_with_a_ticket(site: Site, upcalls: Upcalls, user: Requestor) -> None:
    answer = user.ask(upcalls.name(), user_callout())
    context = established(answer)
    assert context.flags & 3 == 3
    assert context.endtime > time.time() + 60
    proven(site, answer)
    done = upcalls.log("LGSS_STEP=updated")[-1]
    assert done["LGSS_KEY"] == str(answer.key) and done["LGSS_UID"] == str(USER_UID)
    assert done["LGSS_INITIATOR"].startswith("alice@") and done["level"] == "info"
    assert "lgss-MDT0000-mdc" in done["LGSS_TARGET"]
    assert pace.met(answer.blocked, 0.1)


def test_root_with_the_keytab(site: Site, upcalls: Upcalls, root: Requestor) -> None:
    answer = root.ask(upcalls.name(), machine_callout())
    proven(site, answer)
    done = upcalls.log("LGSS_STEP=updated")[-1]
    assert done["LGSS_INITIATOR"].startswith("lustre_root/localhost@")
    assert pace.met(answer.blocked, 0.1)


@pytest.mark.parametrize("claimed", [0, 61777])
def test_group_that_a_user_claims_is_not_taken(
    site: Site, upcalls: Upcalls, ticket: int, claimed: int
) -> None:
    """A user who has no passwd entry works with the gid that the kernel tells, not the callout's."""
    gid = 61778
    with Requestor(ticket, gid) as user:
        answer = user.ask(upcalls.name(), user_callout(gid=claimed))
        proven(site, answer)
    assert any(f"working as uid {ticket}, gid {gid}" in e["message"] for e in upcalls.events(answer.key))


def test_root_asks_for_a_user(site: Site, upcalls: Upcalls, root: Requestor, ticket: int) -> None:
    proven(site, root.ask(upcalls.name(), user_callout(ticket)))


def test_second_request_finds_the_key_without_an_upcall(upcalls: Upcalls, user: Requestor) -> None:
    name = upcalls.name()
    first = user.ask(name, user_callout())
    events = len(upcalls.log("LGSS_STEP=updated"))
    second = user.ask(name, user_callout())
    assert second.key == first.key and second.payload == first.payload
    # The shortest: on a busy machine each may be stretched.
    assert min(user.ask(name, user_callout()).blocked for _ in range(5)) < first.blocked / 3
    time.sleep(pace(0.1))
    assert len(upcalls.log()) == events


def test_key_lives_as_long_as_the_context(upcalls: Upcalls, root: Requestor) -> None:
    answer = root.ask(upcalls.name(), machine_callout())
    upcalls.log("LGSS_STEP=updated")
    # Root sees its own keys in /proc/keys; the fourth column is the time left.
    (line,) = [x for x in Path("/proc/keys").read_text().splitlines() if x.startswith(f"{answer.key:08x}")]
    assert line.split()[3] not in ("perm", "expd"), line


@pytest.mark.parametrize(
    ("enctype", "number"),
    [
        ("aes128-cts-hmac-sha1-96", 17),
        ("aes256-cts-hmac-sha1-96", 18),
        ("aes128-cts-hmac-sha256-128", 19),
        ("aes256-cts-hmac-sha384-192", 20),
    ],
)
def test_enctypes_of_lustre(enctype: str, number: int) -> None:
    with Site(enctypes=[enctype]) as site, site.upcalls() as upcalls:
        site.kinit()
        with Requestor(USER_UID) as user:
            answer = user.ask(upcalls.name(), user_callout())
        assert established(answer).enctype == number
        proven(site, answer)


def test_other_enctypes_are_a_clear_failure() -> None:
    with Site(enctypes=["camellia256-cts-cmac"]) as site, site.upcalls() as upcalls:
        site.kinit()
        with Requestor(USER_UID) as user:
            answer = user.ask(upcalls.name(), user_callout())
        assert isinstance(payload.unpack(answer.data), payload.FailurePayload)
        event = upcalls.log("LGSS_ERROR=")[-1]
        assert event["LGSS_ERROR"] == "enctype" and "26" in event["message"]


@pytest.fixture
def session_caches(site: Site) -> Iterator[Upcalls]:
    """Upcalls whose users' default cache is in their session keyring."""
    config = site.directory / "session-krb5.conf"
    lines = Path(site.realm.krb5_conf).read_text().splitlines()
    lines = [line for line in lines if "default_ccache_name" not in line]
    at = lines.index("[libdefaults]") + 1
    config.write_text("\n".join([*lines[:at], "  default_ccache_name = KEYRING:session:lgss", *lines[at:]]))
    config.chmod(0o644)
    with site.upcalls({"krb5": {"config": str(config)}}) as upcalls:
        yield upcalls


def kinit_in_session(site: Site, requestor: Requestor) -> None:
    keytab = site.directory / "alice.keytab"
    shutil.copyfile(site.population.user_keytab, keytab)
    os.chown(keytab, requestor.uid, requestor.uid)
    config = {"KRB5_CONFIG": str(site.directory / "session-krb5.conf")}
    requestor.run(["kinit", "-k", "-t", str(keytab), "alice"], config)


def test_a_credential_only_in_the_requestors_session_keyring(site: Site, session_caches: Upcalls) -> None:
    """The front's links keep it in reach (docs/protocol.md 10)."""
    with Requestor(USER_UID) as user:
        without = user.ask(session_caches.name(), user_callout())
        assert isinstance(payload.unpack(without.data), payload.FailurePayload)
        kinit_in_session(site, user)
        proven(site, user.ask(session_caches.name(), user_callout()))


def test_root_asking_for_a_user_lends_that_user_nothing(
    site: Site, session_caches: Upcalls, root: Requestor
) -> None:
    """A TGT in root's session keyring is root's: not for a context of somebody else."""
    kinit_in_session(site, root)
    proven(site, root.ask(session_caches.name(), user_callout(0)))
    answer = root.ask(session_caches.name(), user_callout(USER_UID))
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.ENOKEY, 7 << 16)


def test_failure_is_gone_after_two_seconds_and_tried_again(
    site: Site, upcalls: Upcalls, user: Requestor
) -> None:
    name = upcalls.name()
    os.unlink(site.realm.ccache_of(USER_UID))
    failed = user.ask(name, user_callout())
    assert isinstance(payload.unpack(failed.data), payload.FailurePayload)
    site.kinit()
    time.sleep(2.5)
    again = user.ask(name, user_callout())
    assert again.key != failed.key
    proven(site, again)


@pytest.mark.skipif("LGSS_VM" in os.environ, reason="there 200 do, and 100 of type lgssc (tests/vm)")
def test_64_at_once_root_and_users(site: Site) -> None:
    # Users of this run alone: their keys are counted in the end.
    first = 100_000 + 8 * os.getpid()
    uids = [0 if i % 4 == 0 else first + i % 8 for i in range(64)]
    for uid in sorted(set(uids) - {0}):
        site.kinit(uid)
    # The last of them is to be answered, too, where each takes half a second.
    limits = {"connect_timeout": pace.whole(10), "reply_timeout": pace.whole(10)}
    settings = {"rpcsec_gss": limits, "upcall": {"timeout": pace.whole(30)}}
    requestors = [Requestor(uid) for uid in uids]
    try:
        with site.upcalls(settings, f"--timeout {pace.whole(30)}") as upcalls:
            for uid, requestor in zip(uids, requestors, strict=True):
                callout = user_callout(uid) if uid else machine_callout()
                requestor.start(upcalls.name(), callout, wait=pace(25))
            answers = [requestor.result() for requestor in requestors]
    finally:
        for requestor in requestors:
            requestor.close()
    for answer in answers:
        established(answer)
    assert len({payload.unpack(a.data).handle for a in answers}) == 64  # type: ignore[union-attr]
    assert within(5, lambda: not upcall_processes(site))
    # Two are the kernel's for every uid that ever asked: _uid.UID and _uid_ses.UID.
    assert within(10, lambda: all(keys_of(uid) <= 2 for uid in set(uids) - {0}))


def test_service_of_roots_that_works_for_a_user_lends_that_user_nothing(
    site: Site, session_caches: Upcalls
) -> None:
    """By setfsuid(2): the kernel names the user as the requestor, the keyrings are root's.
    Whether the request names the process or not."""
    with Requestor(USER_UID) as user:
        kinit_in_session(site, user)
        established(user.ask(session_caches.name(), user_callout(pid=user.pid)))
    for named in (True, False):
        with Requestor(0) as service:
            kinit_in_session(site, service)
            proven(site, service.ask(session_caches.name(), user_callout(0)))
            service.fsuid(USER_UID)
            answer = service.ask(session_caches.name(), user_callout(pid=service.pid if named else 0), wait=5)
            failed(answer, session_caches, errno.ENOKEY, "no-ticket")


def test_lgssc_is_instantiated_without_a_payload(site: Site, root: Requestor) -> None:
    """docs/protocol.md 7: no payload. A user key must have one, so the kernel refuses that; the
    rest of the rule needs a kernel with that type (tests/vm)."""
    with site.upcalls(told_type="lgssc") as upcalls:
        answer = root.ask(upcalls.name(), user_callout(0))
        assert answer.error == errno.EINVAL
        assert "keyctl_instantiate" in upcalls.log("LGSS_ERROR=")[-1]["message"]


def test_requestors_keyrings_are_out_of_the_machines_reach(
    site: Site, root: Requestor, root_cache: Path
) -> None:
    """The danger of docs/protocol.md 10: with the requestor's session keyring linked, root would
    resolve KEYRING:session to what is in there.  And each link takes the whole kernel's lock, so
    only a keyring that holds credentials is linked, for who asks for itself."""
    site.realm.kinit("alice", 0, 0)
    links: list[int] = []
    with (
        peers.Silent() as peer,
        site.upcalls({"rpcsec_gss": {"port": peer.port, "reply_timeout": 5}}) as upcalls,
    ):

        def ask(callout: str) -> None:
            key = root.ask(upcalls.name(), callout, wait=0).key
            assert within(
                3,
                lambda: any(
                    e.get("LGSS_KEY") == str(key) and "getting a ticket" in e["message"]
                    for e in upcalls.log()
                ),
            )
            (ring,) = [x for x in Path("/proc/keys").read_text().splitlines() if f" _req.{key}: " in x]
            links.append(int(ring.rpartition(": ")[2]))

        ask(user_callout(0))
        root.run(["keyctl", "newring", "_krb_lgss-test", "@s"])
        ask(user_callout(0))
        ask(machine_callout())
        for pid in upcall_processes(site):
            os.kill(pid, 9)
    without, own, machine = links
    assert own == without + 1 and machine == without


def test_unlinking_the_requestors_keyrings() -> None:
    from lgss_keyring.front import keyctl
    from lgss_keyring.system import keyrings

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            keyutils.join_session_keyring()
            ring = keyutils.add_key(b"lgss-test", b"", keyctl.KEY_SPEC_SESSION_KEYRING, b"keyring")
            keyrings.unlink_requestor((ring, 0, ring))
            status = (
                0
                if keyutils.search(keyctl.KEY_SPEC_SESSION_KEYRING, b"lgss-test", 0, b"keyring") is None
                else 2
            )
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
