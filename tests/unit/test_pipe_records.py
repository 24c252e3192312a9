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

NUMBERS = st.integers(0, 2**64 - 1)


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
