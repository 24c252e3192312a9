"""The life of contexts, policies and buffers, without a kernel."""

from __future__ import annotations

import errno
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from lgss_keyring import sptlrpc
from lgss_keyring.formats.crypto import rfc3961
from lgss_keyring.formats.errors import (
    LgssError,
)
from lgss_keyring.formats.payload import ContextPayload, FailurePayload, Krb5Context
from lgss_keyring.sptlrpc import Context, State, Target
from lgss_keyring.sptlrpc.keyring import KeyringPolicy
from lgss_keyring.sptlrpc.pipe import PipePolicy
from lgss_keyring.sptlrpc.policy import Policy

from .sessions import sides


def test_buffers_have_room_for_the_token() -> None:
    buffer = sptlrpc.Buffer(100, 28)
    buffer.message[:] = b"m" * 100
    assert buffer.finish(b"t" * 28) == b"m" * 100 + b"t" * 28
    buffer.enlarge(1000)
    assert bytes(buffer.message[:101]) == b"m" * 100 + b"t" and len(buffer.message) == 1000
    with pytest.raises(sptlrpc.MessageBufferError, match="28 were reserved"):
        buffer.finish(b"t" * 29)
    with pytest.raises(sptlrpc.MessageBufferError):
        buffer.enlarge(10)
    held = buffer.message
    with pytest.raises(sptlrpc.MessageBufferError, match="in use"):
        buffer.enlarge(100_000)
    held.release()
    buffer.free()
    for use in (lambda: buffer.message, buffer.free, lambda: buffer.finish(b"")):
        with pytest.raises(sptlrpc.MessageBufferError, match="freed"):
            use()


def test_policy_by_argument_configuration_or_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configured = tmp_path / "config.toml"
    configured.write_text('[sptlrpc]\npolicy = "pipe"\n')
    monkeypatch.delenv("LGSS_POLICY", raising=False)
    assert isinstance(sptlrpc.create_policy(), KeyringPolicy)
    assert isinstance(sptlrpc.create_policy(config_file=str(configured)), PipePolicy)
    monkeypatch.setenv("LGSS_POLICY", "pipe")
    assert isinstance(sptlrpc.create_policy(), PipePolicy)
    assert isinstance(sptlrpc.create_policy("keyring"), KeyringPolicy)
    monkeypatch.setenv("LGSS_POLICY", "plain")
    with pytest.raises(LgssError, match="keyring, pipe"):
        sptlrpc.create_policy()


def test_repr_names_no_secret() -> None:
    """What is printed ends up in logs."""
    session, _ = sides("krb5p")
    assert session.context is not None
    shown = [repr(session.context), repr(ContextPayload(7, b"handle", session.context.pack()))]
    shown.append(repr(rfc3961.Krb5Keys(session.context.ke, session.context.ki, session.context.kc)))
    for text in shown:
        assert "bytes>" in text
        for key in (session.context.ke, session.context.ki, session.context.kc):
            assert repr(key)[2:-1] not in text and key.hex() not in text


class Still(Policy):
    """``begin`` is what happens when a context is asked for."""

    name = "still"
    alive = 0

    def __init__(self, begin: Callable[[Context], object] = lambda context: context.instantiated()) -> None:
        self.begin = begin
        self.key_error = 0
        self.retired: list[Context] = []
        self.destroyed: list[Context] = []

    def start(self, context: Context) -> None:
        self.begin(context)

    def check(self, context: Context) -> int:
        return self.key_error

    def retire(self, context: Context) -> None:
        self.retired.append(context)

    def destroy(self, context: Context) -> None:
        self.destroyed.append(context)

    def display(self, context: Context) -> str:
        return ""

    def sec(self) -> sptlrpc.SecurityObject:
        return self.create_sec(Target(1, 1, "target"), "gssnull")


ANSWER = ContextPayload(8, b"handle", b"context")
FAILURE = FailurePayload(errno.ENOKEY, 7 << 16)


def in_time(work: Callable[[], object]) -> None:
    """Fails where ``work`` hangs, or raises."""
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(work() or True), daemon=True)
    thread.start()
    thread.join(5)
    assert done, "it hangs, or has failed"


@pytest.mark.parametrize("answer", [ANSWER, FAILURE])
def test_cancelled_future_harms_nobody_else(answer: ContextPayload | FailurePayload) -> None:
    sec = Still().sec()
    context = sec.lookup_ctx(5)
    futures = [context.refresh_later() for _ in range(3)]
    assert futures[1].cancel()
    context.take(answer)
    for future in (futures[0], futures[2]):
        assert (future.exception(1) is None) == (answer is ANSWER)
    assert context.cached == (answer is ANSWER)
    in_time(lambda: sec.lookup_ctx(5))


def test_look_up_from_a_futures_callback() -> None:
    """A callback of a failed future may look up again, in the thread that calls it."""
    sec = Still().sec()
    context = sec.lookup_ctx(5)
    found: list[Context] = []
    context.refresh_later().add_done_callback(lambda _: found.append(sec.lookup_ctx(5)))
    in_time(lambda: context.take(FAILURE))
    assert len(found) == 1 and found[0] is not context


def test_policy_that_cannot_start_leaves_nobody_waiting() -> None:
    def fail(context: Context) -> None:
        raise RuntimeError("can't start new thread")

    policy = Still(fail)
    sec = policy.sec()
    with pytest.raises(RuntimeError):
        sec.lookup_ctx(5)
    assert not sec.contexts
    policy.begin = lambda context: context.established(ANSWER)
    in_time(lambda: sec.lookup_ctx(5).refresh(1))


def test_context_that_fails_while_another_look_up_waits_for_it() -> None:
    """Both raise, and neither leaves a reference."""
    errors: list[LgssError] = []

    def look_up() -> None:
        with pytest.raises(LgssError) as caught:
            sec.lookup_ctx(5)
        errors.append(caught.value)

    other = threading.Thread(target=look_up)

    def fail(context: Context) -> None:
        other.start()
        end = time.monotonic() + 60
        while context.references < 3:  # the cache's, the first one's and the other one's
            assert time.monotonic() < end
            time.sleep(0.001)
        raise LgssError("no such thing", errno=errno.EIO)

    policy = Still(fail)
    sec = policy.sec()
    look_up()
    other.join(60)
    assert [(error.errno, error.reason) for error in errors] == [(errno.EIO, "no such thing")] * 2
    assert [each.references for each in policy.destroyed] == [0]


def test_each_look_up_has_a_reference() -> None:
    policy = Still()
    sec = policy.sec()
    found = [sec.lookup_ctx(5) for _ in range(3)]
    assert found == [found[0]] * 3 and found[0].references == 4  # one is the cache's
    for context in found:
        sec.release_ctx(context)
    assert found[0].references == 1 and policy.destroyed == []


def test_look_up_gives_the_reference_of_a_dead_context_back() -> None:
    policy = Still(lambda context: context.instantiated(77))
    sec = policy.sec()
    dead = sec.lookup_ctx(5)
    policy.key_error = errno.ENOKEY
    with sec.lookup_ctx(5) as successor:
        assert successor is not dead and dead.state is State.DEAD
        assert dead.references == 1 and policy.destroyed == []
        sec.release_ctx(dead)
        assert policy.destroyed == [dead]


def test_context_leaves_the_cache_once() -> None:
    """A second time would end a key that it has no more, and drop a reference of somebody's."""
    policy = Still()
    sec = policy.sec()
    context = sec.lookup_ctx(5)
    sec.uncache(context)
    with sec.lookup_ctx(5) as successor:
        sec.uncache(context)
        assert policy.retired == [context] and context.references == 1
        assert sec.contexts == {(5, 0): successor}
    sec.release_ctx(context)
    assert policy.destroyed == [context]


def test_threads_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pids cgroup: an error at once, and a context when there is room again."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with KeyringPolicy() as policy, policy.create_sec(Target(1, 1, "target"), "krb5i") as sec:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(LgssError, match="cannot start a thread") as caught:
                sec.lookup_ctx()
        assert caught.value.errno == errno.EAGAIN
        assert not sec.contexts and policy.alive == 0


def test_grace_that_begins_before_the_answer() -> None:
    sec = Still().sec()
    context = sec.lookup_ctx(5)
    context.die(grace=30)
    # Its key would never have an answer if it was got out of the way now.
    assert context.state.value == "new" and context.cached
    context.take(ANSWER)
    assert context.state is State.UP_TO_DATE and not context.cached
    assert time.time() + 29 < context.endtime <= time.time() + 31
    assert sec.lookup_ctx(5) is not context


def test_flush_with_grace_and_force() -> None:
    """Grace is kept with force, too; a fraction of a second is some grace."""
    sec = Still(lambda context: context.established(ANSWER)).sec()
    context = sec.lookup_ctx(5)
    assert sec.flush_ctx_cache(grace=0.5, force=True) == 1
    assert context.validate() and not context.cached
    sec.release_ctx(context)
    sec.release_ctx(sec.lookup_ctx(5))
    context = next(iter(sec.contexts.values()))
    assert sec.flush_ctx_cache(grace=30) == 1 and context.state is State.DEAD  # nobody uses it


def test_an_error_raised_often_does_not_grow() -> None:
    context = Still().sec().lookup_ctx(5)
    context.take(FAILURE)
    depths = set()
    for _ in range(5):
        with pytest.raises(LgssError) as caught:
            context.refresh()
        depths.add(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(depths) == 1


def test_buffer_for_a_context_without_answer() -> None:
    sec = Still().sec()
    with pytest.raises(LgssError, match="refresh it first") as caught:
        sec.alloc_reqbuf(10, sec.lookup_ctx(5))
    assert caught.value.errno == errno.EAGAIN


def test_enlarged_buffer_has_room_for_what_it_becomes() -> None:
    krb5 = Krb5Context(2**31, 3, 7, 18, *[bytes([n]) * 32 for n in (1, 2, 3)])
    policy = Still(lambda made: made.established(ContextPayload(8, b"h", krb5.pack())))
    sec = policy.create_sec(Target(1, 1, "target"), "krb5p")
    with sec.lookup_ctx(5) as context:
        for length in range(413, 460):
            buffer = sec.alloc_reqbuf(413, context)
            sec.enlarge_reqbuf(buffer, length)
            assert len(context.seal(b"", bytes(length))) <= buffer.capacity


def test_reverse_context_of_a_destroyed_security_object() -> None:
    sec = Still().sec()
    server, _ = sides("krb5i")
    sec.install_rctx(server, b"h", int(time.time()) - 1)
    assert sec.reverse_ctx() is None
    sec.destroy_sec()
    with pytest.raises(LgssError, match="destroyed"):
        sec.install_rctx(server, b"h", 2**31)


def test_old_reverse_context_goes_when_a_new_one_is_installed() -> None:
    """Nobody else may ever sweep: a server installs one for each context of a client's."""
    policy = Still()
    sec = policy.sec()
    server, _ = sides("krb5i")
    now = int(time.time())
    sec.release_ctx(sec.install_rctx(server, b"1", now + 1000))
    kept = sec.reverse_ctx()
    assert kept is not None
    kept.end_by(now - 1)
    kept.put()
    newest = sec.install_rctx(server, b"2", now + 1000)
    assert policy.destroyed == [kept] and sec.reverse_ctx() is newest
    assert sec.display().count("\n") == 1


def test_options_of_another_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGSS_POLICY", "pipe")
    with pytest.raises(LgssError, match="does not have these options: prefix"):
        sptlrpc.create_policy(prefix="lgss:")
    with (
        sptlrpc.create_policy() as policy,
        policy.create_sec(Target(1, 1, "t"), "krb5i", root_flags="") as sec,
    ):
        with pytest.raises(LgssError, match="with flags r"):
            sec.lookup_ctx(0)


def test_a_policy_that_was_closed_asks_no_more() -> None:
    policy = PipePolicy("/nonexistent")
    policy.close()
    with policy.create_sec(Target(1, 1, "t"), "krb5i") as sec, pytest.raises(LgssError) as caught:
        sec.lookup_ctx(5)
    assert caught.value.errno == errno.ESHUTDOWN
