"""Key payloads: what a real kernel took, and that nothing else is one."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.formats.errors import PayloadError
from lgss_keyring.formats.payload import ContextPayload, FailurePayload, Krb5Context, unpack
from lgss_keyring.front import keyctl
from tests.support import keyutils

from .almost import almost, single_faults
from .vectors import load

UPCALLS = load("lustre-upcalls.json")
SUCCESS = bytes.fromhex(UPCALLS["upcalls"][0]["update"])


@pytest.mark.parametrize("upcall", UPCALLS["upcalls"], ids=lambda upcall: upcall["who"])
def test_updates_that_a_real_kernel_took(upcall: dict[str, Any]) -> None:
    data = bytes.fromhex(upcall["update"])
    decoded = unpack(data)
    assert isinstance(decoded, ContextPayload)
    assert (decoded.seq_win, len(decoded.handle)) == (2048, 8)
    context = Krb5Context.unpack(decoded.context)
    assert (context.enctype, context.flags, len(context.kc)) == (18, 7, 32)
    assert decoded.pack() == data and context.pack() == decoded.context


def test_failed_update_that_a_real_kernel_took() -> None:
    data = bytes.fromhex(UPCALLS["failed_update"])
    assert unpack(data) == FailurePayload(errno.ENOKEY, 0)
    assert FailurePayload(errno.ENOKEY, 0).pack() == data


SIZES = {17: 16, 18: 32, 19: 16, 20: 32}
"""Bytes of a derived key by enctype (RFC 3962, RFC 8009)."""

keys = st.sampled_from(sorted(SIZES)).flatmap(
    lambda enctype: st.tuples(
        st.just(enctype),
        *[st.binary(min_size=SIZES[enctype], max_size=SIZES[enctype])] * 3,
    )
)


@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.integers(0, 2**64 - 1), keys)
def test_contexts_come_back(
    endtime: int, flags: int, seq: int, material: tuple[int, bytes, bytes, bytes]
) -> None:
    context = Krb5Context(endtime, flags, seq, *material)
    assert Krb5Context.unpack(context.pack()) == context


@given(st.integers(1, 2**32 - 1), st.binary(min_size=1, max_size=1024), st.binary(min_size=1, max_size=4096))
def test_payloads_come_back(seq_win: int, handle: bytes, context: bytes) -> None:
    decoded = ContextPayload(seq_win, handle, context)
    assert unpack(decoded.pack()) == decoded


@given(st.integers(1, 4095), st.integers(0, 2**32 - 1))
def test_failures_come_back(number: int, major: int) -> None:
    assert unpack(FailurePayload(number, major).pack()) == FailurePayload(number, major)


CONTEXTS = st.builds(
    lambda endtime, flags, seq, material: Krb5Context(endtime, flags, seq, *material).pack(),
    st.integers(0, 2**32 - 1),
    st.integers(0, 7),
    st.integers(0, 2**64 - 1),
    keys,
)
# Made by hand, as pack() refuses some of these.
PAYLOADS = st.builds(
    lambda window, handle, context: (
        struct.pack("=II", window, len(handle)) + handle + struct.pack("=I", len(context)) + context
    ),
    st.integers(1, 2**32 - 1),
    st.binary(max_size=40) | st.sampled_from([b"", bytes(1024), bytes(1025)]),
    st.binary(max_size=100) | st.sampled_from([b"", bytes(4096), bytes(4097)]),
) | st.builds(
    lambda number, major: struct.pack("=IiI", 0, -number, major),
    st.integers(1, 4095) | st.sampled_from([-5, 0, 1, 4095, 4096]),
    st.integers(0, 2**32 - 1),
)


def check_payload(data: bytes) -> None:
    """That ``data`` decodes to what packs to the same bytes, or to a PayloadError."""
    try:
        decoded = unpack(data)
    except PayloadError:
        return
    if isinstance(decoded, ContextPayload):
        assert decoded.seq_win > 0
        assert 1 <= len(decoded.handle) <= 1024 and 1 <= len(decoded.context) <= 4096
    else:
        assert 0 < decoded.rpc_error < 4096
    assert decoded.pack() == data


def check_context(data: bytes) -> None:
    """As :func:`check_payload`, for the context in a payload."""
    try:
        context = Krb5Context.unpack(data)
    except PayloadError:
        return
    assert {len(context.ke), len(context.ki), len(context.kc)} == {SIZES[context.enctype]}
    assert 0 <= context.flags <= 7 and context.pack() == data


@given(almost(PAYLOADS) | st.binary(max_size=60))
def test_any_bytes_are_a_payload_or_a_payload_error(data: bytes) -> None:
    check_payload(data)


@given(almost(CONTEXTS) | st.binary(max_size=60))
def test_any_bytes_are_a_context_or_a_payload_error(data: bytes) -> None:
    check_context(data)


def test_payloads_and_contexts_with_one_fault() -> None:
    for payload in (SUCCESS, FailurePayload(5, 7).pack(), ContextPayload(1, b"h", bytes(1100)).pack()):
        for data in single_faults(payload):
            check_payload(data)
    for enctype, size in SIZES.items():
        for data in single_faults(Krb5Context(1, 7, 1, enctype, *[bytes(size)] * 3).pack()):
            check_context(data)


@pytest.mark.parametrize(
    "refused",
    [
        FailurePayload(0, 0),
        FailurePayload(-5, 0),
        FailurePayload(4096, 0),
        FailurePayload(5, -1),
        FailurePayload(5, 2**32),
        ContextPayload(0, b"h", b"c"),
        ContextPayload(2**32, b"h", b"c"),
        ContextPayload(1, b"", b"c"),
        ContextPayload(1, bytes(1025), b"c"),
        ContextPayload(1, b"h", b""),
        ContextPayload(1, b"h", bytes(4097)),
        Krb5Context(2**32, 7, 1, 17, bytes(16), bytes(16), bytes(16)),
        Krb5Context(1, -1, 1, 17, bytes(16), bytes(16), bytes(16)),
        Krb5Context(1, 8, 1, 17, bytes(16), bytes(16), bytes(16)),
        Krb5Context(1, 7, 2**64, 17, bytes(16), bytes(16), bytes(16)),
        Krb5Context(1, 7, 1, 17, bytes(16), bytes(16), bytes(32)),
        Krb5Context(1, 7, 1, 17, bytes(32), bytes(32), bytes(32)),
        Krb5Context(1, 7, 1, 23, bytes(16), bytes(16), bytes(16)),
    ],
    ids=str,
)
def test_what_would_be_refused_is_not_packed(refused: FailurePayload | ContextPayload | Krb5Context) -> None:
    with pytest.raises(PayloadError):
        refused.pack()


def test_the_longest_and_largest_are_packed() -> None:
    for largest in (
        FailurePayload(4095, 2**32 - 1),
        ContextPayload(2**32 - 1, bytes(1024), bytes(4096)),
        FailurePayload(1, 0),
    ):
        assert unpack(largest.pack()) == largest


@pytest.mark.parametrize("cut", range(len(SUCCESS)))
def test_no_part_of_a_payload_is_one(cut: int) -> None:
    with pytest.raises(PayloadError):
        unpack(SUCCESS[:cut])


@pytest.mark.parametrize(
    "data",
    [
        SUCCESS + b"\0",
        struct.pack("=IiI", 0, -5, 0) + b"\0",
        struct.pack("=IiI", 0, 5, 0),
        struct.pack("=IiI", 0, 0, 0),
        struct.pack("=IiI", 0, -4096, 0),
        struct.pack("=II", 1, 0) + struct.pack("=I", 1) + b"x",
        struct.pack("=II", 1, 1) + b"h" + struct.pack("=I", 0),
        struct.pack("=II", 1, 1025) + bytes(1025) + struct.pack("=I", 1) + b"x",
        struct.pack("=II", 1, 0xFFFFFFFF) + bytes(64),
    ],
)
def test_malformed_payloads(data: bytes) -> None:
    with pytest.raises(PayloadError):
        unpack(data)


def _context(**changes: int) -> bytes:
    head = {
        "version": 2,
        "endtime": 1,
        "flags": 7,
        "seq": 1,
        "enctype": 18,
        "size": 32,
        "count": 3,
        **changes,
    }
    return struct.pack("=IIIQIII", *head.values()) + bytes(96)


@pytest.mark.parametrize(
    "changes", [{"version": 1}, {"flags": 8}, {"enctype": 17}, {"enctype": 23}, {"size": 16}, {"count": 2}]
)
def test_malformed_contexts(changes: dict[str, int]) -> None:
    Krb5Context.unpack(_context())
    with pytest.raises(PayloadError):
        Krb5Context.unpack(_context(**changes))


def show(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "lgss_keyring.cli.payload", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
    )


def test_shown_to_a_person_without_key_material() -> None:
    decoded = unpack(SUCCESS)
    assert isinstance(decoded, ContextPayload)
    kc = Krb5Context.unpack(decoded.context).kc.hex()
    done = show(SUCCESS.hex())
    assert done.returncode == 0
    assert b"aes256-cts-hmac-sha1-96" in done.stdout and b"2048" in done.stdout
    assert kc.encode() not in done.stdout
    assert kc.encode() in show(SUCCESS.hex(), "--show-keys").stdout
    assert show("-", stdin=SUCCESS).stdout == show("-", stdin=SUCCESS.hex().encode()).stdout == done.stdout


def test_failure_and_placeholder_are_shown() -> None:
    assert b"ENOKEY" in show(UPCALLS["failed_update"]).stdout
    assert b"pending" in show("00").stdout


@pytest.mark.parametrize("arguments", [["ff"], ["xyz"], ["--key", "2147483646"]])
def test_what_is_no_payload_is_said_in_one_line(arguments: list[str]) -> None:
    done = show(*arguments)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["00", "--key", "5"], ["--key", "x"]])
def test_wrong_usage(arguments: list[str]) -> None:
    assert show(*arguments).returncode == 2


def test_key_is_read_by_serial() -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            keyutils.join_session_keyring()
            key = keyutils.add_key(
                b"lgss:unit", bytes.fromhex(UPCALLS["failed_update"]), keyctl.KEY_SPEC_SESSION_KEYRING
            )
            status = 0 if b"ENOKEY" in show("--key", str(key)).stdout else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
