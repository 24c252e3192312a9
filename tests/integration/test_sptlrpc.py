"""The library's contexts: use cases and operations, on real keys."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import pytest

from lgss_keyring import sptlrpc
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.sptlrpc import SecurityObject, State
from lgss_keyring.sptlrpc.keyring import KeyringPolicy
from tests.support import keyutils
from tests.support.site import USER_UID, Site, Upcalls
from tests.support.stage import CHECKOUT, Stage

from .library import TARGET, exists, in_user, policy_of
from .waiting import pace, within

pytestmark = pytest.mark.usefixtures("swept")


def test_create_a_new_context(policy: KeyringPolicy, sec: SecurityObject) -> None:
    context = sec.lookup_ctx()
    # 5.3: the caller is back before the negotiation is done.
    assert context.state.value == "new" and context.cached and context.key
    assert context.refresh(10) is context
    assert context.state is State.UP_TO_DATE and context.handle and context.endtime > time.time() + 60
    # Key and context point to each other.
    named = keyutils.describe_key(context.key).decode()
    assert policy.description(context) in named
    for part in (f"{os.geteuid()}@", TARGET.obd_name, TARGET.client_uuid, f"{TARGET.nid:x}", ":1:"):
        assert part in policy.description(context)
    again = sec.lookup_ctx()
    assert again is context and context.references == 3
    sec.release_ctx(again)
    sec.release_ctx(context)


def test_create_a_new_context_timeout(site: Site) -> None:
    """The handler instantiates and then says nothing, as if it was killed."""
    program = site.stage.directory / "silent.py"
    Stage.write_front(CHECKOUT / "bench" / "bare.py", program)
    with (
        site.upcalls(program=program, arguments="%o %k") as upcalls,
        policy_of(upcalls, upcall_timeout=1.0) as policy,
        policy.create_sec(TARGET, "krb5i") as sec,
    ):
        context = sec.lookup_ctx()
        key = context.key
        with pytest.raises(LgssError) as caught:
            context.refresh(5)
        assert caught.value.errno == errno.ETIMEDOUT and str(key) in caught.value.reason
        assert context.state is State.ERROR and not context.cached
        # The key is out of the way: the next look-up makes another one.
        assert within(1, lambda: not exists(key))
        other = sec.lookup_ctx()
        assert other is not context and other.key != key
        sec.release_ctx(other)
        sec.release_ctx(context)


def test_request_key_itself_hangs(site: Site) -> None:
    """5.4: the helper never instantiates."""
    program = site.stage.directory / "hanging"
    program.write_text("#!/bin/sh\nexec sleep 3\n")
    program.chmod(0o755)
    with (
        site.upcalls(program=program, arguments="%o %k") as upcalls,
        policy_of(upcalls, request_timeout=0.5) as policy,
        policy.create_sec(TARGET, "krb5i") as sec,
    ):
        started = time.monotonic()
        with pytest.raises(LgssError, match=r"request_key\(2\) did not return within 0.5 s") as caught:
            sec.lookup_ctx()
        assert caught.value.errno == errno.ETIMEDOUT and pace.met(time.monotonic() - started, 1.5)
        assert within(5, lambda: policy.alive == 0)


def test_failure_of_the_upcall_is_told(site: Site, upcalls: Upcalls) -> None:
    def work() -> list[Any]:
        with policy_of(upcalls) as policy, policy.create_sec(TARGET, "krb5i") as sec:
            context = sec.lookup_ctx()
            try:
                context.refresh(10)
            except LgssError as error:
                said = [error.errno, error.major, context.state.value, error.kind]
            sec.release_ctx(context)
            return said

    uid = USER_UID + 146
    site.realm.ccache_of(uid).unlink(missing_ok=True)
    assert in_user(uid, work) == [errno.ENOKEY, 7 << 16, "error", "upcall"]


def test_no_rule_at_all() -> None:
    with sptlrpc.create_policy("keyring", prefix=f"lgss-no-rule-{os.getpid()}:") as policy:
        with policy.create_sec(TARGET, "krb5i") as sec:
            with pytest.raises(LgssError, match="Required key not available") as caught:
                sec.lookup_ctx()
            assert caught.value.errno in (errno.ENOKEY, errno.ENOENT)


def test_refresh_without_waiting(sec: SecurityObject) -> None:
    with sec.lookup_ctx() as context:
        first = context.refresh_later()
        assert first.result(10) is context
        assert context.refresh_later().done()


def test_match_validate_die_and_display(policy: KeyringPolicy, sec: SecurityObject) -> None:
    with sec.lookup_ctx() as context:
        context.refresh(10)
        assert context.match(os.geteuid()) and not context.match(12345) and context.validate()
        shown = context.display()
        assert f"key {context.key}" in shown and "up to date, cached" in shown and "krb5p" in shown
        assert context.session is not None and context.session.context is not None
        assert context.session.context.ke.hex() not in shown
        assert shown in sec.display()
        key = context.key
        context.die()
        assert context.state is State.DEAD and not context.cached and not context.validate()
        with pytest.raises(LgssError) as caught:
            context.sign([b"x"])
        assert caught.value.errno == errno.EKEYREVOKED
        with sec.lookup_ctx() as other:
            assert other is not context and other.refresh(10).key
        assert "dead" in context.display()
    assert within(1, lambda: not exists(key))


def test_die_with_grace(sec: SecurityObject) -> None:
    with sec.lookup_ctx() as context:
        context.refresh(10)
        context.die(grace=1.5)
        assert not context.cached
        context.sign([b"still"])
        with sec.lookup_ctx() as other:
            assert other is not context
        time.sleep(2.6)
        assert not context.validate()
        with pytest.raises(LgssError):
            context.sign([b"over"])


def test_flush_ctx_cache(sec: SecurityObject) -> None:
    context = sec.lookup_ctx().refresh(10)
    assert sec.flush_ctx_cache(uid=4711) == 0
    assert sec.flush_ctx_cache() == 0 and context.cached  # in use
    assert sec.flush_ctx_cache(grace=60) == 1 and not context.cached and context.validate()
    sec.release_ctx(context)
    context = sec.lookup_ctx().refresh(10)
    assert sec.flush_ctx_cache(os.geteuid(), force=True) == 1 and context.state is State.DEAD
    sec.release_ctx(context)
    sec.release_ctx(sec.lookup_ctx().refresh(10))
    assert sec.flush_ctx_cache() == 1  # nobody uses it
    assert not sec.contexts


def test_destroyed_security_object_makes_no_more(policy: KeyringPolicy) -> None:
    sec = policy.create_sec(TARGET, "krb5i")
    context = sec.lookup_ctx().refresh(10)
    sec.destroy_sec()
    assert context.state is State.DEAD
    with pytest.raises(LgssError, match="destroyed"):
        sec.lookup_ctx()
    sec.release_ctx(context)
