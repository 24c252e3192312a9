"""Whose keys the library finds and makes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.formats.errors import LgssError
from lgss_keyring.front import keyctl
from lgss_keyring.sptlrpc import Context, SecurityObject, State
from lgss_keyring.sptlrpc.keyring import KeyringPolicy
from lgss_keyring.system import keyrings
from tests.support import keyutils
from tests.support.site import USER_UID, Site, Upcalls

from .library import TARGET, exists, in_user, policy_of
from .waiting import within

pytestmark = pytest.mark.usefixtures("swept")


def test_key_and_context_go_together(policy: KeyringPolicy, sec: SecurityObject) -> None:
    """5.1: destroying the one destroys the other, whichever comes first."""
    context = sec.lookup_ctx().refresh(10)
    key = context.key
    assert context.references == 2
    sec.uncache(context)
    assert within(1, lambda: not exists(key)) and policy.alive == 1
    context.sign([b"who holds it may use it still"])
    sec.release_ctx(context)
    assert policy.alive == 0
    with sec.lookup_ctx() as context:
        context.refresh(10)
        keyutils.invalidate(context.key)
        assert within(1, lambda: not context.validate()) and context.state is State.DEAD


def test_expired_key_is_noticed_and_replaced(sec: SecurityObject) -> None:
    """5.6: by the next look-up, or by a sweep."""
    with sec.lookup_ctx() as context:
        context.refresh(10)
        # Root possesses it where its user keyring is in reach.
        reach(lambda: keyutils.set_timeout(context.key, 1))
        assert within(3, lambda: not context.validate())
        assert context.error is not None and context.error.errno in (errno.EKEYEXPIRED, errno.ENOKEY)
        with sec.lookup_ctx() as other:
            assert other is not context
            other.refresh(10)
            reach(lambda: keyutils.set_timeout(other.key, 1))
            time.sleep(2)
            assert sec.gc() == 1 and other.state is State.DEAD


def test_periodic_sweep(policy: KeyringPolicy) -> None:
    with policy.create_sec(TARGET, "krb5i") as sec:
        sec.sweep_every(0.1)
        context = sec.lookup_ctx().refresh(10)
        reach(lambda: keyutils.invalidate(context.key))
        assert within(3, lambda: context.state is State.DEAD and not sec.contexts)
        sec.release_ctx(context)


def reach(work: Callable[[], object]) -> None:
    """Do something to keys in the user keyring, from a thread that has it in reach."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            keyutils.link(keyutils.KEY_SPEC_USER_KEYRING, keyutils.KEY_SPEC_THREAD_KEYRING)
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures, failures


def test_revoked_key_does_not_block_its_name(site: Site, upcalls: Upcalls) -> None:
    """It answers EKEYREVOKED without an upcall (docs/protocol.md 10), unless another keyring of the
    process has no key of that name. After a login all lead to @u: the session keyring does, too."""
    site.kinit(USER_UID)

    def work() -> list[Any]:
        keyutils.link(keyutils.KEY_SPEC_USER_KEYRING, keyutils.KEY_SPEC_SESSION_KEYRING)
        with policy_of(upcalls) as policy, policy.create_sec(TARGET, "krb5p") as sec:
            with sec.lookup_ctx() as context:
                context.refresh(10)
                keyutils.revoke(context.key)
                name = policy.description(context).encode()
                with pytest.raises(keyutils.Error) as caught:
                    keyutils.request_key(b"user", name, None, 0)
                with sec.lookup_ctx() as other:
                    other.refresh(10)
                    return [caught.value.errno, other.key != context.key, context.state.value]

    assert in_user(USER_UID, work) == [errno.EKEYREVOKED, True, "dead"]


def test_cleanup_never_hits_a_successor(policy: KeyringPolicy, upcalls: Upcalls) -> None:
    """5.8: keyctl_unlink goes by name; here another policy has made the next key of it."""
    with policy.create_sec(TARGET, "krb5i") as sec, policy_of(upcalls) as others:
        context = sec.lookup_ctx().refresh(10)
        assert context.keyrings == (keyctl.get_keyring_id(keyutils.KEY_SPEC_USER_KEYRING),)
        reach(lambda: keyutils.unlink(context.key, keyutils.KEY_SPEC_USER_KEYRING))
        with others.create_sec(TARGET, "krb5i") as second, second.lookup_ctx() as successor:
            successor.refresh(10)
            assert successor.key != context.key
            context.die()
            sec.release_ctx(context)
            time.sleep(0.2)
            assert exists(successor.key) and successor.validate()
            ring = keyutils.read_key(successor.keyrings[0])
            assert successor.key.to_bytes(4, sys.byteorder) in [
                ring[i : i + 4] for i in range(0, len(ring), 4)
            ]


def keyrings_of_this_process() -> list[Any]:
    found: list[Any] = []
    for special in (-1, -2, -3):
        try:
            ring = keyctl.get_keyring_id(special)
            found.append((ring, keyutils.read_key(ring).hex()))
        except OSError as error:
            found.append(error.errno)
    return found


def lookup_in(upcalls: Upcalls) -> dict[str, Any]:
    """Look up once; the key's serial and whether this process's keyrings were left alone."""
    before = keyrings_of_this_process()
    with policy_of(upcalls) as policy:
        sec = policy.create_sec(TARGET, "krb5i")
        context = sec.lookup_ctx().refresh(10)
        # Not destroyed: the next process is to find it.
        return {"key": context.key, "same": keyrings_of_this_process() == before, "rings": before}


@pytest.mark.parametrize("uid", [0, USER_UID])
def test_all_sessions_of_a_user_share_one_key(site: Site, upcalls: Upcalls, uid: int) -> None:
    if uid:
        site.kinit(uid)
    first = in_user(uid, lambda: lookup_in(upcalls))
    second = in_user(uid, lambda: lookup_in(upcalls))
    assert first["rings"][2] != second["rings"][2], "two sessions"
    assert first["key"] == second["key"]
    assert first["same"] and second["same"]
    assert len(upcalls.log("LGSS_STEP=updated")) and sum(
        e.get("LGSS_STEP") == "updated" for e in upcalls.log()
    ) == 1  # fmt: skip

    def clean() -> None:
        reach(lambda: keyutils.invalidate(first["key"]))

    in_user(uid, clean)


@pytest.mark.parametrize("root_flags", ["r", ""])
@pytest.mark.parametrize("revoked", [False, True])
def test_keys_that_another_user_has_planted(
    upcalls: Upcalls, root_cache: Path, root_flags: str, revoked: bool
) -> None:
    """After su(1) root's session keyring is often the user's, with keys of that user's choice."""
    user = USER_UID + 147

    def work() -> list[Any]:
        with policy_of(upcalls) as policy:
            with policy.create_sec(TARGET, "krb5i", root_flags=root_flags) as sec:
                name = policy.description(Context(sec, 0))
                os.seteuid(user)
                planted = keyutils.add_key(name.encode(), b"\0" * 100, keyutils.KEY_SPEC_SESSION_KEYRING)
                if revoked:
                    keyutils.revoke(planted)
                os.seteuid(0)
                try:
                    context = sec.lookup_ctx()
                except LgssError as error:
                    ring = keyrings.members(keyrings.serial_of(keyrings.USER))
                    return [error.errno, planted in ring, error.reason]
                try:
                    context.refresh(10)
                except LgssError as error:
                    return [error.errno, False, error.reason]
                finally:
                    sec.release_ctx(context)
                return [0, context.key == planted, policy.description(context)]

    number, harmed, words = in_user(0, work)
    assert not harmed
    if root_flags:
        assert number == 0
    elif revoked:
        assert number == errno.ENOKEY  # from the upcall: root has no ticket of its own
    else:
        assert number == errno.EACCES and f"uid {user}'s" in words


@pytest.mark.parametrize("session_cache", [None, "nrl"])
def test_session_with_credentials_of_its_own(site: Site, session_cache: str | None) -> None:
    """3.2, NRL: its context is for this session alone."""
    config = site.directory / "nrl.conf"
    lines = Path(site.realm.krb5_conf).read_text().splitlines()
    lines = [line for line in lines if "default_ccache_name" not in line]
    at = lines.index("[libdefaults]") + 1
    config.write_text("\n".join([*lines[:at], "  default_ccache_name = KEYRING:session:nrl", *lines[at:]]))
    config.chmod(0o644)
    keytab = site.directory / "nrl.keytab"
    keytab.write_bytes(site.population.user_keytab.read_bytes())
    os.chown(keytab, USER_UID, USER_UID)
    kinit = ["kinit", "-k", "-t", str(keytab), "alice"]

    with site.upcalls({"krb5": {"config": str(config)}}) as upcalls:

        def work() -> list[Any]:
            subprocess.run(kinit, env={**os.environ, "KRB5_CONFIG": str(config)}, check=True)
            policy = policy_of(upcalls, session_cache=session_cache)
            sec = policy.create_sec(TARGET, "krb5i")
            context = sec.lookup_ctx().refresh(10)
            session = keyctl.get_keyring_id(keyutils.KEY_SPEC_SESSION_KEYRING)
            user_ring = keyutils.read_key(keyctl.get_keyring_id(keyutils.KEY_SPEC_USER_KEYRING)).hex()
            return [context.key, context.domain == session, context.keyrings == (session,), user_ring]

        def without() -> list[Any]:
            policy = policy_of(upcalls, session_cache=session_cache)
            sec = policy.create_sec(TARGET, "krb5i")
            context = sec.lookup_ctx()
            try:
                context.refresh(10)
            except LgssError as error:
                time.sleep(0.5)  # the thread takes the key away
                return [context.domain, error.errno]
            return [context.domain, 0]

        one, two = in_user(USER_UID, work), in_user(USER_UID, work)
        assert one[0] != two[0]
        for key, own_domain, own_ring, user_ring in (one, two):
            assert own_domain and own_ring
            assert key.to_bytes(4, sys.byteorder).hex() not in user_ring
        assert in_user(USER_UID, without) == [0, errno.ENOKEY]


def test_machine_context_of_a_session_with_credentials(upcalls: Upcalls) -> None:
    """They are not what it is made with: all of root shares it (5.7)."""

    def domains() -> list[int]:
        subprocess.run(["keyctl", "newring", "_krb_anything", "@s"], check=True, capture_output=True)
        with policy_of(upcalls) as policy:
            machine = policy.create_sec(TARGET, "krb5i")
            own = policy.create_sec(TARGET, "krb5i", root_flags="")
            names = {policy.description(Context(each, 0)) for each in (machine, own)}
            return [policy.domain(machine, 0), policy.domain(machine, 5), policy.domain(own, 0), len(names)]

    machine, other, own, names = in_user(0, domains)
    assert machine == other == 0 and own and names == 2


def test_no_keys_are_left_to_users() -> None:
    """Root does not see them; they would count against their quota."""

    def mine() -> list[str]:
        lines = Path("/proc/keys").read_text().splitlines()
        return [line for line in lines if f" lgss:{os.getppid()}." in line]

    def left() -> list[str]:
        found: list[str] = in_user(USER_UID, mine)
        return [line for line in found if "i" not in line.split()[1]]

    assert within(5, lambda: not left()), left()
