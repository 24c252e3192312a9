"""The main job: from request_key(2) to an established context, through the kernel."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from lgss_keyring.formats.crypto import tokens
from lgss_keyring.formats.payload import ContextPayload, Krb5Context
from tests.support import keyutils, peers
from tests.support.cgroup import Cgroup
from tests.support.requestor import Answer, Requestor
from tests.support.site import USER_UID, Site, Upcalls, machine_callout, user_callout

from .conftest import keys_of, pace, upcall_processes, within
from .failures import failed

pytestmark = pytest.mark.vm


def established(answer: Answer) -> Krb5Context:
    assert answer.error == 0 and answer.read_error == 0, answer
    decoded = payload.unpack(answer.data)
    assert isinstance(decoded, ContextPayload), (decoded, answer)
    return Krb5Context.unpack(decoded.context)


def proven(site: Site, answer: Answer) -> None:
    """MICs made with one side's keys verify with the other's, both ways."""
    ours = established(answer)
    handle = payload.unpack(answer.data).handle.hex()  # type: ignore[union-attr]
    (theirs,) = [
        Krb5Context.unpack(bytes.fromhex(c["context"]))
        for c in site.acceptor.contexts()
        if c["handle"] == handle
    ]
    message = [b"a Lustre", b" message"]
    for maker, checker, acceptor in ((ours, theirs, False), (theirs, ours, True)):
        mic = tokens.make_mic(maker.kc, maker.enctype, message, sequence=maker.send_seq, acceptor=acceptor)
        assert (
            tokens.verify_mic(checker.kc, checker.enctype, message, mic, acceptor=acceptor) == maker.send_seq
        )
    assert (ours.ke, ours.ki) == (theirs.ke, theirs.ki)


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
    assert answer.blocked < pace(0.1)


def test_root_with_the_keytab(site: Site, upcalls: Upcalls, root: Requestor) -> None:
    answer = root.ask(upcalls.name(), machine_callout())
    proven(site, answer)
    done = upcalls.log("LGSS_STEP=updated")[-1]
    assert done["LGSS_INITIATOR"].startswith("lustre_root/localhost@")
    assert answer.blocked < pace(0.1)


def test_root_asks_for_a_user(site: Site, upcalls: Upcalls, root: Requestor, ticket: int) -> None:
    proven(site, root.ask(upcalls.name(), user_callout(ticket)))


def test_second_request_finds_the_key_without_an_upcall(upcalls: Upcalls, user: Requestor) -> None:
    name = upcalls.name()
    first = user.ask(name, user_callout())
    events = len(upcalls.log("LGSS_STEP=updated"))
    second = user.ask(name, user_callout())
    assert second.key == first.key and second.payload == first.payload
    assert second.blocked < first.blocked / 3
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


def test_root_asking_for_a_user_lends_him_nothing(
    site: Site, session_caches: Upcalls, root: Requestor
) -> None:
    """A TGT in root's session keyring is root's: not for a context of somebody else."""
    kinit_in_session(site, root)
    proven(site, root.ask(session_caches.name(), user_callout(0)))
    answer = root.ask(session_caches.name(), user_callout(USER_UID))
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.ENOKEY, 7 << 16)


def test_worker_of_a_user_has_no_way_back(site: Site, ticket: int) -> None:
    with (
        peers.Silent() as peer,
        site.upcalls({"rpcsec_gss": {"port": peer.port, "reply_timeout": 5}}) as upcalls,
    ):
        with Requestor(ticket) as user:
            user.start(upcalls.name(), user_callout(), wait=0)
            assert user.result().error == 0
            assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
            processes = upcall_processes(site)
            status = {pid: Path(f"/proc/{pid}/status").read_text() for pid in processes}
            users = [
                text for text in status.values() if f"Uid:\t{ticket}\t{ticket}\t{ticket}\t{ticket}\n" in text
            ]
            assert len(status) == 2 and len(users) == 1, status
            (worker,) = users
            assert f"Gid:\t{ticket}\t{ticket}\t{ticket}\t{ticket}\n" in worker
            for line in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                assert f"{line}:\t0000000000000000" in worker
            assert "NoNewPrivs:\t1" in worker
            assert "Groups:\t \n" in worker
            for pid in processes:
                os.kill(pid, 9)


def test_nobody_else_of_that_uid_can_look_into_the_worker(site: Site, ticket: int) -> None:
    with (
        peers.Silent() as peer,
        site.upcalls({"rpcsec_gss": {"port": peer.port, "reply_timeout": 5}}) as upcalls,
    ):
        with Requestor(ticket) as user:
            assert user.ask(upcalls.name(), user_callout(), wait=0).error == 0
            assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
            (worker,) = [
                p
                for p in upcall_processes(site)
                if f"Uid:\t{ticket}" in Path(f"/proc/{p}/status").read_text()
            ]
            spy = subprocess.run(
                ["/bin/sh", "-c", f"cat /proc/{worker}/environ || ls /proc/{worker}/fd"],
                user=ticket,
                group=ticket,
                extra_groups=[],
                capture_output=True,
                check=False,
            )
            assert spy.returncode != 0 and b"denied" in spy.stderr and not spy.stdout
            for pid in upcall_processes(site):
                os.kill(pid, 9)


def test_monitor_killed_takes_the_worker_along(site: Site, ticket: int) -> None:
    """And the key expires at the upcall timeout."""
    with peers.Silent() as peer:
        settings = {"rpcsec_gss": {"port": peer.port, "reply_timeout": 30}}
        with site.upcalls(settings, f"--timeout {pace.whole(3)}") as upcalls, Requestor(ticket) as user:
            user.start(upcalls.name(), user_callout(), wait=pace(8))
            assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
            (monitor,) = [
                p for p in upcall_processes(site) if "Uid:\t0\t0" in Path(f"/proc/{p}/status").read_text()
            ]
            os.kill(monitor, 9)
            assert within(1, lambda: not upcall_processes(site))
            answer = user.result()
    assert answer.read_error == errno.EKEYEXPIRED
    assert answer.updated is None


def test_worker_killed_is_answered_at_once(site: Site, ticket: int) -> None:
    with peers.Silent() as peer:
        with site.upcalls({"rpcsec_gss": {"port": peer.port, "reply_timeout": 30}}) as upcalls:
            with Requestor(ticket) as user:
                user.start(upcalls.name(), user_callout(), wait=8)
                assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
                (worker,) = [
                    p
                    for p in upcall_processes(site)
                    if f"Uid:\t{ticket}" in Path(f"/proc/{p}/status").read_text()
                ]
                # A user may do this to a process of his: it must not hurt but himself.
                subprocess.run(
                    ["kill", "-9", str(worker)], user=ticket, group=ticket, extra_groups=[], check=True
                )
                answer = user.result()
            event = upcalls.log("LGSS_ERROR=worker-died")[-1]
    assert answer.updated is not None
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.EIO, 0)
    assert "signal 9" in event["message"]


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
    uids = [0 if i % 4 == 0 else 61300 + i % 8 for i in range(64)]
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


def test_memory_of_an_upcall(site: Site, ticket: int) -> None:
    with Cgroup() as cgroup:
        wrapper = site.stage.directory / "wrapper"
        cgroup.write_wrapper(wrapper, site.stage.program)
        with site.upcalls(program=wrapper) as upcalls, Requestor(ticket) as user:
            peak = 0
            for done in range(1, 6):
                user.start(upcalls.name(), user_callout())
                while sum(event.get("LGSS_STEP") == "updated" for event in upcalls.log()) < done:
                    peak = max(peak, cgroup.pss())
                established(user.result())
    assert 5 << 20 < peak < 40 << 20


def test_the_child_imports_only_what_it_uses(site: Site) -> None:
    """The modules of a whole user's upcall, loaded as the child loads them."""
    code = (
        "import sys; sys.path.append(sys.argv[1]); from lgss_keyring.front import keyctl;"
        "from lgss_keyring.monitor import upcall; from lgss_keyring.worker import mech; import types;"
        "mech.load('krb5').prepare(types.SimpleNamespace(is_machine=False));"
        "from lgss_keyring.worker.channel import rpcsec_gss; print(*sorted(sys.modules))"
    )
    interpreter = (site.stage.program.read_text().splitlines()[0]).removeprefix("#!").split()
    done = subprocess.run(
        [*interpreter, "-c", code, str(site.stage.directory)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    unused = {
        "argparse", "click", "dataclasses", "email", "json", "logging", "pathlib", "pkgutil", "shutil", "ssl",
        "subprocess", "tempfile", "threading", "tomllib", "unittest", "asyncio", "lockfile",
        "gssapi.creds", "gssapi._win_config", "gssapi.raw.ext_s4u", "gssapi.raw.ext_dce",
        "lgss_keyring.worker.creds.machine", "lgss_keyring.front.refusal", "lgss_keyring.testing",
    }  # fmt: skip
    assert not loaded & unused
    assert "gssapi.raw.sec_contexts" in loaded


def test_a_damaged_installation_still_answers(site: Site, ticket: int) -> None:
    """The front's last resort: the package cannot be loaded, the key gets ELIBACC."""
    broken = site.stage.directory / "broken"
    (broken / "lgss_keyring").mkdir(parents=True)
    package = site.stage.directory / "lgss_keyring"
    for name in ("__init__.py", "keyctl.py", "errors.py", "refusal.py"):
        (broken / "lgss_keyring" / name).symlink_to(package / name)
    front = broken / "lgss_keyring.py"
    front.write_text(site.stage.program.read_text())
    front.chmod(0o755)
    with site.upcalls(program=front) as upcalls, Requestor(ticket) as user:
        answer = user.ask(upcalls.name(), user_callout())
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.ELIBACC, 0)
    assert answer.updated is not None and answer.updated < pace(1)


def test_an_installation_without_its_first_module_says_so(site: Site, ticket: int) -> None:
    """Nothing can answer the key then; but somebody has to say why."""
    front = site.stage.directory / "alone" / "lgss_keyring.py"
    front.parent.mkdir()
    # syslog goes to a file here: nothing of ours is there to be asked for a log.
    told = front.parent / "told"
    text = site.stage.program.read_text()
    assert text.count("    import syslog\n") == 1
    fake = (
        "    class syslog:\n"
        "        LOG_PID = LOG_AUTHPRIV = LOG_ERR = 0\n"
        "        openlog = print\n"
        f"        syslog = lambda _, line: open({str(told)!r}, 'w').write(line)\n"
    )
    front.write_text(text.replace("    import syslog\n", fake))
    front.chmod(0o755)
    with site.upcalls(program=front) as upcalls, Requestor(ticket) as user:
        assert user.ask(upcalls.name(), user_callout()).error == errno.ENOKEY
    assert "ImportError: " in told.read_text() and "reinstall" in told.read_text()


def test_service_of_roots_that_works_for_a_user_lends_him_nothing(
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
        answer = root.ask(upcalls.name(), machine_callout())
        assert answer.error == errno.EINVAL
        assert "keyctl_instantiate" in upcalls.log("LGSS_ERROR=")[-1]["message"]


def test_requestors_keyrings_are_out_of_the_machines_reach(site: Site, root: Requestor) -> None:
    """The danger of docs/protocol.md 10: with the requestor's session keyring linked, root would resolve
    KEYRING:session to what is in there.  A user's request needs that link, a machine's
    must have lost it when it goes to work."""
    site.realm.kinit("alice", 0, 0)
    links: dict[str, int] = {}
    with (
        peers.Silent() as peer,
        site.upcalls({"rpcsec_gss": {"port": peer.port, "reply_timeout": 5}}) as upcalls,
    ):
        for callout in (user_callout(0), machine_callout()):
            key = root.ask(upcalls.name(), callout, wait=0).key
            assert within(
                3, lambda: sum("getting a ticket" in e["message"] for e in upcalls.log()) > len(links)
            )
            (ring,) = [x for x in Path("/proc/keys").read_text().splitlines() if f" _req.{key}: " in x]
            links[callout] = int(ring.rpartition(": ")[2])
        for pid in upcall_processes(site):
            os.kill(pid, 9)
    assert links[user_callout(0)] == links[machine_callout()] + 1


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
