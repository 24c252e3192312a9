"""Flavors, sequence windows, sessions, buffers and the pipe's records, without a kernel."""

from __future__ import annotations

import errno
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring import sptlrpc
from lgss_keyring.formats import pipe
from lgss_keyring.formats.crypto import rfc3961
from lgss_keyring.formats.errors import (
    GSS_S_BAD_MIC,
    GSS_S_DEFECTIVE_TOKEN,
    GSS_S_DUPLICATE_TOKEN,
    GSS_S_OLD_TOKEN,
    LgssError,
    MechanismError,
    PayloadError,
    RequestError,
)
from lgss_keyring.formats.payload import KEY_SIZES, ContextPayload, FailurePayload, Krb5Context
from lgss_keyring.sptlrpc import FLAVORS, Context, Session, State, Target, Window, parse_flavor
from lgss_keyring.sptlrpc.keyring import KeyringPolicy
from lgss_keyring.sptlrpc.pipe import PipePolicy
from lgss_keyring.sptlrpc.policy import Policy

from .vectors import load

PIECES = [b"header", b"body", b"more"]
NUMBERS = st.integers(0, 2**64 - 1)


def sides(flavor: str, enctype: int = 18) -> tuple[Session, Session]:
    """Initiator's and acceptor's session on the same keys."""
    size = KEY_SIZES[enctype]
    keys = [bytes([n]) * size for n in (1, 2, 3)]
    flavored = parse_flavor(flavor)
    client, server = (Session(Krb5Context(2**31, n | 2, 7, enctype, *keys), flavored, 128) for n in (1, 0))
    return client, server


# Flavors.


@pytest.mark.parametrize(
    ("name", "mechanism", "service_type", "covered", "seals"),
    [
        ("krb5n", "krb5", "n", 0, False),
        ("krb5a", "krb5", "a", 1, False),
        ("krb5i", "krb5", "i", 3, False),
        ("krb5p", "krb5", "p", 3, True),
        ("gssnull", "gssnull", "n", 0, False),
    ],
)
def test_flavors_as_lustre_writes_them(
    name: str, mechanism: str, service_type: str, covered: int, seals: bool
) -> None:
    flavor = parse_flavor(name)
    assert str(flavor) == name and flavor is FLAVORS[name]
    assert (flavor.mechanism, flavor.service_type, flavor.covered(3), flavor.seals) == (
        mechanism, service_type, covered, seals,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["", "krb5", "krb5x", "null", "plain", "KRB5I", "a" * 1000])
def test_what_is_no_flavor(name: str) -> None:
    with pytest.raises(sptlrpc.FlavorError, match="krb5i"):
        parse_flavor(name)


# Sequence numbers.


@given(st.lists(st.integers(0, 300), max_size=80), st.integers(1, 64))
def test_window_against_a_plain_model(numbers: list[int], size: int) -> None:
    window = Window(size)
    seen: set[int] = set()
    highest: int | None = None
    for number in numbers:
        if highest is not None and number <= highest - size:
            wanted = GSS_S_OLD_TOKEN
        elif number in seen:
            wanted = GSS_S_DUPLICATE_TOKEN
        else:
            wanted = 0
            seen.add(number)
            highest = number if highest is None else max(highest, number)
        try:
            window.accept(number)
            got = 0
        except MechanismError as error:
            got = error.major
        assert got == wanted, (number, highest)


def test_window_far_jumps() -> None:
    window = Window(2048)
    for number in (0, 2**64 - 1, 2**64 - 2048):
        window.accept(number)
    with pytest.raises(MechanismError):
        window.accept(2**64 - 2049)


def test_sequence_numbers_are_given_once() -> None:
    session, _ = sides("krb5i")
    tokens: list[bytes] = []

    def work() -> None:
        for _ in range(500):
            tokens.append(session.sign(PIECES))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(int.from_bytes(token[8:16], "big") for token in tokens)
    assert numbers == list(range(7, 7 + 4000))


# Messages.


@pytest.mark.parametrize("enctype", [17, 18, 19, 20])
@pytest.mark.parametrize("flavor", ["krb5n", "krb5a", "krb5i", "krb5p"])
def test_both_directions(flavor: str, enctype: int) -> None:
    client, server = sides(flavor, enctype)
    for sender, receiver in ((client, server), (server, client)):
        token = sender.sign(PIECES)
        assert bool(token) == (flavor != "krb5n")
        receiver.verify(PIECES, token)
        if flavor == "krb5p":
            sealed = sender.seal(b"gss", b"message")
            assert len(sealed) - 7 <= sender.overhead() <= len(sealed) - 7 + 15
            assert receiver.unseal(b"gss", sealed, 7) == b"message"
            bulk, texts = sender.wrap_bulk([b"one", b"two" * 100])
            assert receiver.unwrap_bulk(bulk, texts, [3, 300]) == [b"one", b"two" * 100]
        else:
            with pytest.raises(sptlrpc.FlavorError):
                sender.seal(b"", b"")
            assert sender.overhead() == len(token)


def test_krb5a_covers_the_header_alone() -> None:
    client, server = sides("krb5a")
    server.verify([b"header", b"changed"], client.sign([b"header", b"body"]))
    with pytest.raises(MechanismError) as caught:
        server.verify([b"Header", b"body"], client.sign([b"header", b"body"]))
    assert caught.value.major == GSS_S_BAD_MIC


def test_no_token_where_the_flavor_has_none() -> None:
    for session in (sides("krb5n")[0], Session(None, parse_flavor("gssnull"), 128)):
        assert session.sign(PIECES) == b""
        session.verify(PIECES, b"")
        with pytest.raises(MechanismError) as caught:
            session.verify(PIECES, b"token")
        assert caught.value.major == GSS_S_DEFECTIVE_TOKEN


def majors(function: Any, *arguments: Any) -> int:
    with pytest.raises(MechanismError) as caught:
        function(*arguments)
    return caught.value.major


def test_bad_tokens_are_refused_with_the_status_of_rfc_2743() -> None:
    client, server = sides("krb5p")
    other, _ = sides("krb5p", 17)
    mic, wrapped = client.sign(PIECES), client.seal(b"gss", b"message")
    for token, check in (
        (mic, lambda t: server.verify(PIECES, t)),
        (wrapped, lambda t: server.unseal(b"gss", t)),
    ):
        for at in range(len(token)):
            changed = token[:at] + bytes([token[at] ^ 0x10]) + token[at + 1 :]
            assert majors(check, changed) in (GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN)
            cut = majors(check, token[:at])
            # A MIC is as long as the token says; a wrap token's end may be anywhere.
            assert cut == GSS_S_DEFECTIVE_TOKEN or (at > 16 and cut == GSS_S_BAD_MIC)
        check(token)
        assert majors(check, token) == GSS_S_DUPLICATE_TOKEN
    assert majors(client.verify, PIECES, client.sign(PIECES)) == GSS_S_DEFECTIVE_TOKEN  # wrong direction
    assert majors(client.unseal, b"gss", client.seal(b"gss", b"m")) == GSS_S_DEFECTIVE_TOKEN
    assert majors(server.verify, PIECES, other.sign(PIECES)) == GSS_S_BAD_MIC  # another context
    late = client.sign(PIECES)
    for _ in range(130):
        server.verify(PIECES, client.sign(PIECES))
    assert majors(server.verify, PIECES, late) == GSS_S_OLD_TOKEN


def test_forged_tokens_do_not_move_the_window() -> None:
    client, server = sides("krb5i")
    token = client.sign(PIECES)
    forged = token[:8] + (2**63).to_bytes(8, "big") + token[16:]
    assert majors(server.verify, PIECES, forged) == GSS_S_BAD_MIC
    server.verify(PIECES, token)


def test_length_that_does_not_fit_the_padding() -> None:
    client, server = sides("krb5p")
    assert majors(server.unseal, b"", client.seal(b"", b"x" * 20), 16) == GSS_S_DEFECTIVE_TOKEN
    assert majors(server.unseal, b"", client.seal(b"", b"x" * 20), 33) == GSS_S_DEFECTIVE_TOKEN
    assert server.unseal(b"", client.seal(b"", b"x" * 20), 20) == b"x" * 20
    assert server.unseal(b"", client.seal(b"", b""), 0) == b""


@given(st.binary(max_size=100))
def test_any_bytes_are_refused(token: bytes) -> None:
    _, server = sides("krb5p")
    assert majors(server.verify, PIECES, token) in (GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN)
    assert majors(server.unseal, b"", token) in (GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN)
    assert majors(server.unwrap_bulk, token, [], []) in (GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN)


WIRE = load("lustre-wire-tokens.json")


@pytest.mark.parametrize("kind", ["mic", "wrap"])
def test_tokens_off_the_wire(kind: str) -> None:
    """With the library's own verify and unseal: each once, and not twice."""
    for vector in WIRE[kind]:
        size = KEY_SIZES[vector["enctype"]]
        keys = [bytes.fromhex(vector.get(name, "00" * size)) for name in ("Ke", "Ki", "Kc")]
        flags = 2 | (1 if vector["sender_is_acceptor"] else 0)
        context = Krb5Context(2**31, flags, 0, vector["enctype"], *keys)
        session = Session(context, parse_flavor("krb5i" if kind == "mic" else "krb5p"), 2048)
        token = bytes.fromhex(vector["token"])
        if kind == "mic":
            pieces = [bytes.fromhex(piece) for piece in vector["pieces"]]
            session.verify(pieces, token)
            assert majors(session.verify, pieces, token) == GSS_S_DUPLICATE_TOKEN
        else:
            header = bytes.fromhex(vector["gss_header"])
            assert session.unseal(header, token).hex() == vector["padded_message"]
            assert majors(session.unseal, header, token) == GSS_S_DUPLICATE_TOKEN


def test_reverse_sessions_go_the_other_way() -> None:
    client, server = sides("krb5p")
    server.verify(PIECES, client.sign(PIECES))
    back, forth = server.reversed(), client.reversed()
    assert back.initiator and not forth.initiator
    token = back.sign(PIECES)
    assert int.from_bytes(token[8:16], "big") == 8  # what the server would have received next
    forth.verify(PIECES, token)
    back.verify(PIECES, forth.sign(PIECES))
    assert majors(client.verify, PIECES, back.sign(PIECES)) == GSS_S_DEFECTIVE_TOKEN


# Buffers.


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


# Policies.


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


# The pipe's records.


UPCALLS = st.builds(
    pipe.Upcall,
    st.integers(0, pipe.U32),
    st.integers(0, pipe.U32 - 1),
    st.integers(0, pipe.U32 - 1),
    st.integers(0, 2),
    NUMBERS,
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=63),
)


@given(UPCALLS)
def test_upcall_records_come_back(upcall: pipe.Upcall) -> None:
    packed = upcall.pack()
    assert len(packed) == 88 and pipe.Upcall.unpack(packed) == upcall
    assert pipe.seq_of(packed) == upcall.seq


def test_an_upcall_record_byte_by_byte() -> None:
    raw = pipe.Upcall(1, 1000, 1001, 2, 0x20000C0A80105, "lustre-OST0000").pack()
    assert raw.hex() == (
        "01000000" "e8030000" "e9030000" "02000000" "0501a8c000000200" + b"lustre-OST0000".hex() + "00" * 50
    )  # fmt: skip


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_request_error(data: bytes) -> None:
    try:
        pipe.Upcall.unpack(data)
    except RequestError:
        pass
    try:
        pipe.unpack_downcall(data)
    except PayloadError:
        pass
    assert (pipe.seq_of(data) is None) == (len(data) < 4)


@pytest.mark.parametrize("answer", [ContextPayload(7, b"handle", b"context"), FailurePayload(13, 5)])
def test_downcalls_come_back(answer: ContextPayload | FailurePayload) -> None:
    data = pipe.pack_downcall(9, answer.pack())
    assert data[4:8] == bytes(4)
    assert pipe.unpack_downcall(data) == (9, answer)


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


def test_window_of_the_other_sides_choice_is_bounded() -> None:
    window = Window(2**32 - 1)
    window.accept(0)
    window.accept(70000)
    with pytest.raises(MechanismError) as caught:
        window.accept(1)
    assert caught.value.major == GSS_S_OLD_TOKEN


# The life of a context, with a policy that does nothing by itself.


class Still(Policy):
    """``begin`` is what happens when a context is asked for."""

    name = "still"
    alive = 0

    def __init__(self, begin: Callable[[Context], object] = lambda context: context.started.set()) -> None:
        self.begin = begin

    def start(self, context: Context) -> None:
        self.begin(context)

    def check(self, context: Context) -> int:
        return 0

    def retire(self, context: Context) -> None:
        pass

    def destroy(self, context: Context) -> None:
        pass

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
    """Who is told of a failure may try again, in the thread that tells him."""
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
