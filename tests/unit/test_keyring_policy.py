"""The keyring policy: what it does to keys, with a kernel's keys or with made-up ones."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable

import pytest

from lgss_keyring.formats.errors import KeyOperationError, Kind, LgssError
from lgss_keyring.formats.payload import ContextPayload, FailurePayload
from lgss_keyring.sptlrpc import Context, State, Target, keyring, limits
from lgss_keyring.sptlrpc.keyring import PLACEHOLDER, KeyringPolicy
from lgss_keyring.system import keyrings, keys
from tests.support import keyutils

from .own_session import in_own_session

TARGET = Target(1, 1, "target")
KEY = 77
FAILURE = FailurePayload(errno.ENOKEY, 7 << 16).pack()
ANSWER = ContextPayload(8, b"handle", b"context").pack()


def nothing() -> None:
    pass


class Kernel:
    """Stands for the kernel's keys: one key, which has ``answer``.  ``events`` is what the policy
    does to it, and how long the policy sleeps."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, answer: bytes | BaseException, request: Callable[[], None]
    ) -> None:
        self.events: list[tuple[str, float]] = []
        self.answer = answer
        self._request_key = request
        for name in ("request", "read", "invalidate"):
            monkeypatch.setattr(keys, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(keyrings, "owner", lambda key: os.geteuid())
        monkeypatch.setattr(keyrings, "serial_of", lambda special: 88)
        monkeypatch.setattr(keyrings, "describe", lambda key: b"user;0;0;3f010000;name")
        monkeypatch.setattr(keyrings, "link", lambda key, into: None)
        monkeypatch.setattr(keyrings, "join_session", nothing)
        monkeypatch.setattr(keyring, "time", self)

    def _request(self, *_: object) -> int:
        self._request_key()
        return KEY

    def _read(self, key: int) -> bytes:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def _invalidate(self, key: int) -> None:
        self.events.append(("invalidate", key))

    # What the policy has of the module time.

    monotonic = staticmethod(time.monotonic)

    def sleep(self, seconds: float) -> None:
        # Not the pauses between two looks at a key.
        if seconds > limits.LONGEST_PAUSE_SECONDS:
            self.events.append(("sleep", seconds))
        time.sleep(limits.FIRST_PAUSE_SECONDS)


def policy_with(
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes | BaseException,
    request: Callable[[], None] = nothing,
    request_timeout: float = 60.0,
) -> tuple[KeyringPolicy, Kernel]:
    kernel = Kernel(monkeypatch, answer, request)
    return KeyringPolicy(request_timeout=request_timeout, session_cache=""), kernel


def all_threads_have_ended(policy: KeyringPolicy) -> bool:
    end = time.monotonic() + 60
    while policy._threads and time.monotonic() < end:
        time.sleep(0.005)
    return not policy._threads


def test_key_of_a_failed_upcall_stays_until_all_have_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes wait for the same key: ended at once, it would tell them nothing."""
    policy, kernel = policy_with(monkeypatch, FAILURE)
    with policy.create_sec(TARGET, "gssnull") as sec, sec.lookup_ctx(5) as context:
        with pytest.raises(LgssError) as caught:
            context.refresh(60)
        assert (caught.value.errno, caught.value.kind) == (errno.ENOKEY, Kind.UPCALL)
    assert all_threads_have_ended(policy) and policy.alive == 0
    assert kernel.events == [("sleep", limits.FAILURE_SHOWN_SECONDS), ("invalidate", KEY)]


def test_key_without_an_answer_is_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, kernel = policy_with(monkeypatch, KeyOperationError("gone", errno=errno.EKEYEXPIRED))
    with policy.create_sec(TARGET, "gssnull") as sec, sec.lookup_ctx(5) as context:
        with pytest.raises(LgssError, match="ended before its answer"):
            context.refresh(60)
    assert all_threads_have_ended(policy) and policy.alive == 0
    assert set(kernel.events) == {("invalidate", KEY)}


def test_key_that_comes_too_late_is_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it in this process; the next look-up would take its name for a new one."""
    late = threading.Event()

    def wait() -> None:
        assert late.wait(60)

    policy, kernel = policy_with(monkeypatch, PLACEHOLDER, wait, 0.01)
    with policy.create_sec(TARGET, "gssnull") as sec:
        with pytest.raises(LgssError, match="did not return within"):
            sec.lookup_ctx(5)
        assert kernel.events == [] and policy.alive == 1
        late.set()
        assert all_threads_have_ended(policy)
    assert kernel.events == [("invalidate", KEY)] and policy.alive == 0


def test_key_of_a_context_that_was_given_grace_before_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has left the cache without an error."""
    policy, kernel = policy_with(monkeypatch, PLACEHOLDER)
    with policy.create_sec(TARGET, "gssnull") as sec, sec.lookup_ctx(5) as context:
        context.die(grace=1000)
        assert context.state.value == "new" and kernel.events == []
        kernel.answer = ANSWER
        context.refresh(60)
        assert all_threads_have_ended(policy)
        assert context.state is State.UP_TO_DATE and set(kernel.events) == {("invalidate", KEY)}
    assert policy.alive == 0


@pytest.mark.parametrize("where", ["request", "answer"])
def test_defect_in_the_policys_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Else nobody would ever tell it."""

    def fail() -> None:
        if where == "request":
            raise RuntimeError("a defect")

    policy, _ = policy_with(monkeypatch, RuntimeError("a defect"), fail, request_timeout=5)
    with policy.create_sec(TARGET, "gssnull") as sec:
        with pytest.raises(LgssError, match="RuntimeError: a defect"):
            with sec.lookup_ctx(5) as context:
                context.refresh(5)
    assert all_threads_have_ended(policy) and policy.alive == 0


# With keys of the kernel's.


def made(name: str, ring: int = keyutils.KEY_SPEC_SESSION_KEYRING) -> int:
    return keyutils.add_key(name.encode(), b"a context", ring)


def revoked(name: str) -> int:
    key = made(name)
    keyutils.revoke(key)
    return key


def test_only_the_revoked_key_of_that_name_is_unlinked() -> None:
    name = f"lgss-unit-{os.getpid()}:5@target"

    def work() -> None:
        here = keyrings.serial_of(keyrings.SESSION)
        first = revoked(name)
        others = [made(f"{name}:good"), revoked(f"{name}more"), revoked(f"{name}:s5"), revoked(f"x{name}")]
        elsewhere = keyrings.make("other", keyrings.SESSION)
        assert sorted(keyrings.members(here)) == sorted([first, *others, elsewhere])
        keyring._unlink_revoked(name, elsewhere)
        assert first in keyrings.members(here), "it was in another keyring"
        keyring._unlink_revoked(name, here)
        assert sorted(keyrings.members(here)) == sorted([*others, elsewhere])
        successor = made(name)
        keyring._unlink_revoked(name, here)
        assert successor in keyrings.members(here)

    in_own_session(work)


def test_request_for_the_name_of_a_revoked_key_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers EKEYREVOKED, without an upcall, as long as that key is linked."""
    name = f"lgss-unit-{os.getpid()}:6@target"

    def work() -> None:
        here = keyrings.serial_of(keyrings.SESSION)
        old = revoked(name)
        with pytest.raises(KeyOperationError) as caught:
            keys.request(name, "callout", keyrings.SESSION)
        assert caught.value.errno == errno.EKEYREVOKED

        def request(description: str, callout: str, into: int) -> int:
            if old in keyrings.members(here):
                raise KeyOperationError("revoked", errno=errno.EKEYREVOKED)
            return made(description)

        # No rule matches, so the kernel would make no successor.
        monkeypatch.setattr(keys, "request", request)
        key = KeyringPolicy._request_when_free(name, "callout", keyrings.SESSION, here)
        assert key != old and keyrings.members(here) == [key]

    in_own_session(work)


def exists(key: int) -> bool:
    try:
        keyutils.describe_key(key)
    except keyutils.Error:
        return False
    return True


class Owner:
    """All that :meth:`KeyringPolicy._invalidate` reads is in the context."""

    target, flavor, root_flags = TARGET, None, ""


@pytest.mark.parametrize("domain", [0, 1])
def test_key_in_the_user_keyring_is_ended_from_any_session(domain: int) -> None:
    """@u is not in every session, and no key is ended that is not possessed."""

    def work() -> None:
        key = made(f"lgss-unit-{os.getpid()}:7@target", keyutils.KEY_SPEC_USER_KEYRING)
        context = Context(Owner(), 5, domain)  # type: ignore[arg-type]
        context.instantiated(key)
        try:
            with pytest.raises(keyutils.Error) as caught:
                keyutils.invalidate(key)
            assert caught.value.errno == errno.EACCES
            KeyringPolicy._invalidate(context)
            # The key of a session's own context is in that session: @u is not looked into for it.
            assert exists(key) == bool(domain)
        finally:
            keyutils.link(keyutils.KEY_SPEC_USER_KEYRING, keyutils.KEY_SPEC_THREAD_KEYRING)
            if exists(key):
                keyutils.invalidate(key)

    in_own_session(work)
