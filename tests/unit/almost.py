"""Bytes that are almost valid: random ones seldom get past a decoder's first check."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hypothesis import strategies as st

NUMBERS = [0, 1, 2, 3, 1024, 1025, 4095, 4096, 4097, 2**31, 2**32 - 4096, 2**32 - 4095, 2**32 - 1]


@st.composite
def almost(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """What ``valid`` gives, as it is or with one or two faults: a byte or a u32 changed, the end cut
    off, bytes added."""
    data = draw(valid)
    for fault in draw(st.lists(st.sampled_from(["byte", "u32", "cut", "more"]), max_size=2)):
        at = draw(st.integers(0, max(0, min(len(data), 64) - 4)))
        if fault == "byte" and data:
            data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        elif fault == "u32":
            data = data[:at] + struct.pack("=I", draw(st.sampled_from(NUMBERS))) + data[at + 4 :]
        elif fault == "cut":
            data = data[: draw(st.integers(0, len(data)))]
        elif fault == "more":
            data += draw(st.binary(min_size=1, max_size=8))
    return data


def single_faults(data: bytes, order: str = "=") -> Iterator[bytes]:
    """``data`` with one fault: each byte changed, each u32 (in :mod:`struct`'s ``order``) replaced by
    each of NUMBERS, each beginning of it, and bytes added."""
    for at in range(len(data)):
        yield data[:at]
        for bits in (1, 8, 0x80, data[at]):
            yield data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]
    for at in range(0, len(data) - 3, 4):
        for number in NUMBERS:
            yield data[:at] + struct.pack(f"{order}I", number) + data[at + 4 :]
    yield from (data + b"\0", data + bytes(4))
