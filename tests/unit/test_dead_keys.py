"""Which keys are dead contexts, by what the kernel says of them."""

from __future__ import annotations

import errno
import struct
import time

import pytest

from lgss_keyring.formats import payload
from lgss_keyring.formats.job_messages import DeadKeys
from lgss_keyring.worker.dead_keys import is_over, kind_of

UID = 1000


def line(
    flags: str = "I--Q---",
    timeout: str = "perm",
    uid: int = UID,
    key_type: str = "user",
    description: str = "lgss:1f: 12",
) -> bytes:
    """A line of /proc/keys for key 0x2a, by the format of the kernel's proc_keys_show()."""
    text = f"{0x2A:08x} {flags} {1:5d} {timeout:>4s} {0x3F010000:08x} {uid:5d} {uid:5d} {key_type:<9.9s} "
    return f"{text}{description}\n".encode()


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"flags": "IR-Q---", "timeout": "expd"}, "revoked"),
        ({"flags": "IR-----"}, "revoked"),
        ({"timeout": "expd"}, "expired"),
        ({}, "lasting"),
        ({"flags": "IR-Q---", "key_type": "lgssc", "description": "000003e8@0x5: 0"}, "revoked"),
        ({"timeout": "expd", "key_type": "lgssc", "description": "000003e8@0x5: 0"}, "expired"),
        ({"flags": "IR-Q---", "description": "lgss: name of two words: 12"}, "revoked"),
    ],
)
def test_dead_contexts(fields: dict[str, str], kind: str) -> None:
    assert kind_of(line(**fields), UID) == (0x2A, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"timeout": "10h"},  # valid
        {"key_type": "lgssc", "description": "000003e8@0x5: 0"},  # valid; the kernel owns its timeout
        {"uid": 1001, "flags": "IR-Q---"},
        {"description": "other:1: 12", "flags": "IR-Q---"},
        {"description": "x lgss:1: 12", "flags": "IR-Q---"},
        {"key_type": "keyring", "description": "lgss:1: 1", "flags": "IR-Q---"},
        {"key_type": "logon", "description": "lgss:1: 1", "flags": "IR-Q---"},
        {"flags": "---QU--"},  # under construction
        {"flags": "-R-QU--"},
        {"flags": "I--QU--", "timeout": "expd"},
        {"flags": "I--Q-N-", "timeout": "expd"},  # rejected
        {"flags": "I--Q--i"},  # invalidated: the collector comes at once
        {"flags": "I-DQ---"},
    ],
)
def test_all_other_keys_are_left_alone(fields: dict[str, str]) -> None:
    assert kind_of(line(**fields), UID) == (0, "")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [b"", b"\n", b"garbage\n", line()[:40]])
def test_a_line_that_is_none(text: bytes) -> None:
    assert kind_of(text, UID) == (0, "")


def context(endtime: float) -> bytes:
    krb5 = payload.Krb5Context(int(endtime), 1, 0, 18, bytes(32), bytes(32), bytes(32))
    return payload.ContextPayload(32, b"handle", krb5.pack()).pack()


def test_what_is_over() -> None:
    now = time.time()
    assert is_over(payload.FailurePayload(errno.ENOKEY, 0).pack())
    assert is_over(context(now - 400)) and not is_over(context(now - 200)) and not is_over(context(now + 9))
    null = payload.ContextPayload(32, b"handle", bytes(8)).pack()  # gssnull: it does not tell
    assert not any(map(is_over, (payload.PLACEHOLDER, b"", b"something else", null)))


def test_the_counts_in_a_message() -> None:
    counts = DeadKeys(1, 2, 3, 4)
    assert DeadKeys.unpack(counts.pack()) == counts
    for wrong in (b"X", b"S" + counts.pack()[1:], counts.pack() + b"x"):
        with pytest.raises(struct.error):
            DeadKeys.unpack(wrong)
