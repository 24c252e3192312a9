"""Replies through init_channel and gssnull's tokens: bytes that a hostile server chooses."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.formats.callout import format_callout, parse_request
from lgss_keyring.formats.errors import ChannelError, MechanismError
from lgss_keyring.worker.channel.interface import Reply
from lgss_keyring.worker.channel.lustre import parse_reply
from lgss_keyring.worker.mech import gssnull

U32 = st.integers(0, 2**32 - 1)
LENGTHS = st.integers(0, 12) | st.sampled_from([1023, 1024, 1025, 8191, 8192, 2**31, 2**32 - 4, 2**32 - 1])


def padded(data: bytes, with_: bytes = b"\0") -> bytes:
    return data + with_ * (-len(data) % 4)


def packed(reply: Reply, rest: bytes = b"", pad: bytes = b"\0") -> bytes:
    """The reply buffer of docs/protocol.md 6, with ``rest`` behind the reply."""
    head = struct.pack("=IIIII", 0, reply.major, reply.minor, reply.seq_window, len(reply.handle))
    token = struct.pack("=I", len(reply.token)) + padded(reply.token, pad)
    return head + padded(reply.handle, pad) + token + rest


REPLIES = st.builds(Reply, st.binary(max_size=1024), U32, U32, U32, st.binary(max_size=2000))


def refused(data: bytes) -> ChannelError:
    with pytest.raises(ChannelError) as caught:
        parse_reply(data)
    assert (caught.value.errno, caught.value.kind) == (errno.EPROTO, "malformed-reply")
    assert len(caught.value.reason) < 200 and caught.value.reason.isprintable()
    return caught.value


def test_a_reply_byte_by_byte() -> None:
    data = struct.pack("=IIIII", 0, 1, 0x96C73A1F, 2048, 5) + b"hdl.5" + bytes(3)
    data += struct.pack("=I", 6) + b"token6" + bytes(2)
    expected = Reply(b"hdl.5", 1, 0x96C73A1F, 2048, b"token6")
    assert parse_reply(data) == parse_reply(data + bytes(8192 - len(data))) == expected
    for cut in range(len(data)):
        refused(data[:cut])


@given(REPLIES, st.binary(max_size=20), st.sampled_from([b"\0", b"\xff"]))
def test_replies_come_back_with_anything_behind_them(reply: Reply, rest: bytes, pad: bytes) -> None:
    assert parse_reply(packed(reply, rest, pad)) == reply


@given(
    head=st.tuples(st.sampled_from([0, 0, 0, 1, 2**32 - 1]), U32, U32, U32),
    handle_length=LENGTHS,
    handle=LENGTHS,
    token_length=LENGTHS,
    token=LENGTHS,
)
def test_lengths_that_do_not_fit_are_refused(
    head: tuple[int, int, int, int], handle_length: int, handle: int, token_length: int, token: int
) -> None:
    """Lengths as a server likes, and as many bytes as it likes, 8192 at most."""
    data = struct.pack("=IIIII", *head, handle_length) + padded(bytes(min(handle, 8192)))
    data = (data + struct.pack("=I", token_length) + bytes(min(token, 8192)))[:8192]
    try:
        reply = parse_reply(data)
    except ChannelError as error:
        assert (error.errno, error.kind) == (errno.EPROTO, "malformed-reply")
        return
    assert len(reply.handle) == handle_length <= 1024 and head[0] == 0
    assert data[20 : 20 + handle_length] == reply.handle
    end = len(packed(reply))
    assert data[end - len(padded(reply.token)) : end].startswith(reply.token) and end <= len(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_reply_or_a_channel_error(data: bytes) -> None:
    for tried in (data, bytes(4) + data, bytes(20) + data):
        try:
            reply = parse_reply(tried)
        except ChannelError as error:
            assert (error.errno, error.kind) == (errno.EPROTO, "malformed-reply")
        else:
            assert len(packed(reply)) <= len(tried)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("=IIIIII", 1, 0, 0, 0, 0, 0), "begins with 1"),
        (struct.pack("=IIIII", 0, 0, 0, 0, 1025) + bytes(2000), "a handle of 1025 bytes"),
        (struct.pack("=IIIII", 0, 0, 0, 0, 2**32 - 1) + bytes(64), "a handle of 4294967295 bytes"),
        (struct.pack("=IIIIII", 0, 0, 0, 0, 0, 2**32 - 1), "a token of 4294967295 bytes"),
        (struct.pack("=IIIIII", 0, 0, 0, 0, 0, 5) + b"12345", "a token of 5 bytes in a buffer of 29"),
        (b"", "unpack"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, words: str) -> None:
    assert words in refused(data).reason


def test_the_longest_handle_is_taken() -> None:
    assert len(parse_reply(packed(Reply(bytes(1024), 0, 0, 1, b""))).handle) == 1024


# gssnull


def initiator(flags: str = "") -> gssnull.NullInitiator:
    text = format_callout(
        mechanism="gssnull", uid=0, gid=0, flags=flags, lustre_service=1, target_nid=1, obd_name="x"
    )
    return gssnull.NullInitiator(parse_request(["create", "5", "lgssc", "x", text, *"00000"]))


@pytest.mark.parametrize(
    ("flags", "number"),
    [("", 0), ("r", 1), ("m", 2), ("o", 4), ("rm", 3), ("ro", 5), ("mo", 6), ("rmo", 7)],
)
def test_first_token_of_gssnull(flags: str, number: int) -> None:
    first, second = initiator(flags).step(None), initiator(flags).step(None)
    assert first is not None and second is not None
    assert len(first) == 8 and first[4:] == second[4:] == struct.pack(">I", number)
    assert first[:4] != second[:4]


@given(st.binary(max_size=20) | st.binary(min_size=8, max_size=8))
def test_any_token_is_gssnulls_context_or_a_mechanism_error(token: bytes) -> None:
    null = initiator()
    null.step(None)
    assert not null.complete
    try:
        assert null.step(token) is None
    except MechanismError as error:
        assert len(token) != 8 and not null.complete
        assert (error.errno, error.major) == (errno.EACCES, 13 << 16)
    else:
        assert len(token) == 8 and null.complete and null.export() == (token, 2**32 - 1)


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_gssnull_takes_no_mic(message: bytes, mic: bytes) -> None:
    null = initiator()
    null.step(bytes(8))
    with pytest.raises(MechanismError) as caught:
        null.verify_mic(message, mic)
    assert caught.value.kind == "mechanism-unsupported" and "lgssc" in caught.value.hint


@given(U32, U32, st.binary(max_size=100))
def test_a_refusal_keeps_the_acceptors_status(major: int, minor: int, token: bytes) -> None:
    error = initiator().refused(major, minor, token)
    assert (error.major, error.kind, error.errno) == (major, "refused-by-acceptor", errno.EACCES)
    assert f"0x{major:08x}, minor {minor}" in error.reason and error.reason.isprintable()
