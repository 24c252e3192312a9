"""A worker's messages: round trips, and bytes that are none."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgss_keyring.formats import payload, worker_messages
from lgss_keyring.formats.outcome import Answer, Established, Failed
from lgss_keyring.formats.worker_messages import ProtocolError

from .workers import ESTABLISHED, FAILED, texts


def test_established_comes_back_as_a_payload() -> None:
    answer = worker_messages.unpack(worker_messages.pack_outcome(ESTABLISHED))
    assert isinstance(answer, Answer)
    assert payload.unpack(answer.payload) == payload.ContextPayload(128, b"handle", b"context")
    assert (answer.endtime, answer.initiator, answer.failure) == (2_000_000_000, "alice@LGSS.TEST", None)


@given(st.integers(1, 4095), st.integers(0, 2**32 - 1), texts, texts, texts)
def test_failed_comes_back_whole(number: int, major: int, kind: str, reason: str, hint: str) -> None:
    failed = Failed(number, major, kind, reason, hint)
    answer = worker_messages.unpack(worker_messages.pack_outcome(failed))
    assert isinstance(answer, Answer)
    assert answer.failure == failed
    assert payload.unpack(answer.payload) == payload.FailurePayload(number, major)


@given(st.sampled_from(["debug", "info", "warning"]), texts)
def test_steps_come_back(level: str, text: str) -> None:
    assert worker_messages.unpack(worker_messages.pack_step(level, text)) == (level, text)


@given(st.binary(max_size=8192))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        worker_messages.unpack(data)
    except ProtocolError:
        pass


@settings(max_examples=300)
@given(st.sampled_from([ESTABLISHED, FAILED]), st.data())
def test_damaged_messages_never_pass_on_what_is_not_a_payload(
    outcome: Established | Failed, data: st.DataObject
) -> None:
    message = bytearray(worker_messages.pack_outcome(outcome))
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(message)))
    try:
        answer = worker_messages.unpack(bytes(message[:cut]))
    except ProtocolError:
        return
    if isinstance(answer, Answer):
        payload.unpack(answer.payload)


def test_a_failure_payload_cannot_be_called_a_context() -> None:
    packed = payload.FailurePayload(errno.EACCES, 0).pack()
    message = worker_messages._ESTABLISHED.pack(b"E", 2_000_000_000, len(packed)) + packed
    with pytest.raises(ProtocolError):
        worker_messages.unpack(message)


def failed(number: int, texts: bytes = b"a\0b\0c\0d") -> bytes:
    """An F message by hand."""
    return struct.pack("=cII", b"F", number, 0) + texts


@pytest.mark.parametrize("number", [0, 4096, 2**32 - 1])
def test_errno_must_be_one(number: int) -> None:
    for good in (1, 4095):
        answer = worker_messages.unpack(failed(good))
        assert isinstance(answer, Answer)
        assert answer.failure == Failed(good, 0, "a", "b", "c", "d")
    with pytest.raises(ProtocolError):
        worker_messages.unpack(failed(number))
    with pytest.raises(ValueError, match="errno"):
        worker_messages.unpack_failed(failed(number))


def established(name: bytes) -> bytes:
    """An E message by hand."""
    packed = payload.ContextPayload(1, bytes(1024), bytes(4096)).pack()
    return struct.pack("=cIH", b"E", 2_000_000_000, len(packed)) + packed + name


@pytest.mark.parametrize(
    ("longest", "too_long"),
    [
        (b"Sd" + b"x" * 1000, b"Sd" + b"x" * 1001),
        (b"T" + bytes(16384), b"T" + bytes(16385)),
        (b"Tx", b"T"),
        (b"G" + bytes(4), b"G" + bytes(5)),
        (b"G" + bytes(4), b"G" + bytes(3)),
        (b"C", b"Cx"),
        (established(b"n" * 1000), established(b"n" * 1001)),
        (failed(5, b"a\0" + b"b" * 1000 + b"\0c\0d"), failed(5, b"a\0" + b"b" * 1001 + b"\0c\0d")),
        (failed(5), failed(5, b"a\0b\0c")),
        (failed(5), failed(5, b"a\0b\0c\0d\0e")),
    ],
    ids=["step", "token", "no-token", "long-group", "short-group", "credential", "name", "text", "3", "5"],
)
def test_bounds_of_messages(longest: bytes, too_long: bytes) -> None:
    worker_messages.unpack(longest)
    with pytest.raises(ProtocolError):
        worker_messages.unpack(too_long)
