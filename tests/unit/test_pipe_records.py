"""The records between the policy `pipe` and lgssd."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.formats import pipe
from lgss_keyring.formats.errors import (
    PayloadError,
    RequestError,
)
from lgss_keyring.formats.payload import ContextPayload, FailurePayload

from .almost import almost, single_faults

NUMBERS = st.integers(0, 2**64 - 1)


UPCALLS = st.builds(
    pipe.Upcall,
    st.integers(0, 4294967295),
    st.integers(0, 4294967294),
    st.integers(0, 4294967294),
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


def check_upcall(data: bytes) -> None:
    """That ``data`` is a record with fields that are allowed, or a RequestError."""
    assert (pipe.seq_of(data) is None) == (len(data) < 4)
    try:
        upcall = pipe.Upcall.unpack(data)
    except RequestError:
        return
    assert upcall.uid < 4294967295 and upcall.gid < 4294967295 and upcall.service <= 2
    assert upcall.obd_name.isascii() and upcall.obd_name.isprintable()
    assert len(data) == 88 and 1 <= len(upcall.obd_name) <= 63
    # What stands behind the name's NUL is not looked at.
    assert data.startswith(upcall.pack().rstrip(b"\0") + b"\0")


@given(almost(UPCALLS.map(pipe.Upcall.pack)) | st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_request_error(data: bytes) -> None:
    check_upcall(data)


def test_records_with_one_fault() -> None:
    for name in ("x", "n" * 63):
        for data in single_faults(pipe.Upcall(1, 1000, 1001, 2, 0x20000C0A80105, name).pack()):
            check_upcall(data)
    with pytest.raises(RequestError, match="not ended"):
        pipe.Upcall.unpack(pipe.Upcall(1, 1000, 1001, 2, 1, "n" * 63).pack()[:-1] + b"n")


ANSWERS = st.builds(ContextPayload, st.integers(1, 2**32 - 1), *[st.binary(min_size=1, max_size=40)] * 2)
FAILURES = st.builds(FailurePayload, st.integers(1, 4095), st.integers(0, 2**32 - 1))


@given(almost((ANSWERS | FAILURES).map(lambda answer: pipe.pack_downcall(7, answer.pack()))))
def test_any_bytes_are_a_downcall_or_a_payload_error(data: bytes) -> None:
    try:
        seq, answer = pipe.unpack_downcall(data)
    except PayloadError:
        return
    assert (seq, answer.pack()) == (pipe.seq_of(data), data[8:])


@pytest.mark.parametrize("field", ["uid", "gid"])
def test_minus_one_is_nobody_in_a_record(field: str) -> None:
    values = {"seq": 1, "uid": 5, "gid": 5, "service": 1, "nid": 1, "obd_name": "x"}
    for number, is_taken in ((4294967294, True), (4294967295, False)):
        data = pipe.Upcall(**values | {field: number}).pack()  # type: ignore[arg-type]
        if is_taken:
            assert getattr(pipe.Upcall.unpack(data), field) == number
        else:
            with pytest.raises(RequestError, match="out of range"):
                pipe.Upcall.unpack(data)


@pytest.mark.parametrize("answer", [ContextPayload(7, b"handle", b"context"), FailurePayload(13, 5)])
def test_downcalls_come_back(answer: ContextPayload | FailurePayload) -> None:
    data = pipe.pack_downcall(9, answer.pack())
    assert data[4:8] == bytes(4)
    assert pipe.unpack_downcall(data) == (9, answer)
