"""Requests: what a real Lustre client sends, and what nobody should."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.formats import callout
from lgss_keyring.formats.callout import Callout, UpcallRequest, format_callout, parse_callout, parse_request
from lgss_keyring.formats.errors import RefusedError, RequestError

from .vectors import load

UPCALLS = load("lustre-upcalls.json")
GOOD = "42:krb5:1000:1001:r:p:1:0x20000c0a80105:lustre-MDT0000:0x20000c0a80106:3121:b8ae9dc4"


@pytest.mark.parametrize("upcall", UPCALLS["upcalls"], ids=lambda upcall: upcall["who"])
def test_upcalls_of_a_real_lustre_client(upcall: dict[str, Any]) -> None:
    request = parse_request(upcall["argv"])
    assert [request.key, request.key_type, request.description] == [
        int(upcall["argv"][1]),
        *upcall["argv"][2:4],
    ]
    assert request.session_keyring == int(upcall["argv"][9])
    assert request.target_nid == 0x20000C0A84D01
    assert request.is_machine == (upcall["who"] != "alice, MDC")
    callout.authorize(request)
    fields = {name: getattr(request, name) for name in Callout._fields}
    assert format_callout(**fields) == upcall["argv"][4]


def test_every_field() -> None:
    assert parse_callout(GOOD) == Callout(
        42,
        "krb5",
        1000,
        1001,
        "r",
        "p",
        1,
        0x20000C0A80105,
        "lustre-MDT0000",
        0x20000C0A80106,
        3121,
        "b8ae9dc4",
    )
    assert parse_callout(GOOD.rpartition(":")[0]).client_uuid is None
    example = UPCALLS["secid_hex_example"]
    assert int(example["description"].partition("@")[2], 16) == int(example["callout_field_0"])


names = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=63
)


@given(
    st.builds(
        Callout,
        secid=st.integers(-(2**31), 2**31 - 1),
        mechanism=st.sampled_from(["krb5", "gssnull", "sk"]),
        uid=st.integers(0, 4294967294),
        gid=st.integers(0, 4294967294),
        flags=st.sampled_from(["", "r", "m", "o", "rm", "ro", "mo", "rmo"]),
        service_type=st.sampled_from("naip-"),
        lustre_service=st.integers(0, 2),
        target_nid=st.integers(0, 2**64 - 1),
        obd_name=names,
        self_nid=st.integers(0, 2**64 - 1),
        pid=st.integers(0, 2**31 - 1),
        client_uuid=st.none() | names,
    )
)
def test_what_is_formatted_parses_back(fields: Callout) -> None:
    text = format_callout(**{name: getattr(fields, name) for name in Callout._fields})
    assert parse_callout(text) == fields


@given(st.text(max_size=1100) | st.lists(st.text(max_size=20), min_size=9, max_size=13).map(":".join))
def test_any_text_is_a_callout_or_a_request_error(text: str) -> None:
    try:
        parse_callout(text)
    except RequestError as error:
        assert len(error.reason) < 200 and error.reason.isprintable()


# Both sides of each bound, among them -1 as an id of 32 bits (docs/protocol.md 2).
EDGES = [edge + step for edge in (0, 2, 2**31, 2**32 - 1, 2**64) for step in (-1, 0, 1)]
NUMBERS = st.sampled_from([*EDGES, -(2**31), -(2**31) - 1]).flatmap(
    lambda number: st.sampled_from([str(number), f"{number:#x}", f"{number:#X}"])
)


@given(st.integers(0, 11), st.text(max_size=30) | NUMBERS)
def test_any_field_is_checked(index: int, text: str) -> None:
    fields = GOOD.split(":")
    fields[index] = text
    try:
        parsed = parse_callout(":".join(fields))
    except RequestError:
        return
    assert 0 <= parsed.uid < 2**32 - 1 and 0 <= parsed.gid < 2**32 - 1
    assert 0 <= parsed.target_nid < 2**64 and 0 <= parsed.self_nid < 2**64
    assert -(2**31) <= parsed.secid < 2**31 and 0 <= parsed.pid < 2**31
    assert 0 <= parsed.lustre_service <= 2 and parsed.mechanism in ("krb5", "gssnull", "sk")
    assert 1 <= len(parsed.obd_name) <= 127 and set(parsed.flags) <= set("rmo")


@pytest.mark.parametrize("number", ["", "x", "0x", "+1", "1 ", "1_0", "1e3", "0b1", "--1", "0x1g", "1" * 21])
def test_numbers_are_strict(number: str) -> None:
    with pytest.raises(RequestError, match="uid"):
        parse_callout(GOOD.replace(":1000:", f":{number}:"))


@pytest.mark.parametrize(
    ("at", "low", "high"),
    [
        (0, -2147483648, 2147483647),
        (2, 0, 4294967294),
        (3, 0, 4294967294),
        (6, 0, 2),
        (7, 0, 18446744073709551615),
        (9, 0, 18446744073709551615),
        (10, 0, 2147483647),
    ],
)
def test_numbers_of_callout_info_have_these_bounds(at: int, low: int, high: int) -> None:
    def parsed(number: int) -> int:
        fields = GOOD.split(":")
        fields[at] = str(number)
        return int(getattr(parse_callout(":".join(fields)), Callout._fields[at]))

    assert (parsed(low), parsed(high)) == (low, high)
    for number in (low - 1, high + 1):
        with pytest.raises(RequestError, match=r"out of range|not a number"):
            parsed(number)


@pytest.mark.parametrize(
    ("at", "low", "high"),
    [
        (1, 1, 2147483647),
        (5, 0, 4294967294),
        (6, 0, 4294967294),
        (7, 0, 2147483647),
        (8, 0, 2147483647),
        (9, 0, 2147483647),
    ],
)
def test_numbers_of_arguments_have_these_bounds(at: int, low: int, high: int) -> None:
    def parse(number: int) -> None:
        arguments = ["create", "5", "user", "lgss:x", GOOD, "0", "0", "0", "0", "0"]
        arguments[at] = str(number)
        parse_request(arguments)

    parse(low)
    parse(high)
    for number in (low - 1, high + 1):
        with pytest.raises(RequestError, match=r"out of range|not a number"):
            parse(number)


def test_minus_one_is_no_uid() -> None:
    """setresuid(2) would take it as "leave it", and we would stay root."""
    for uid in ("4294967295", "0xffffffff", "-1"):
        with pytest.raises(RequestError):
            parse_callout(GOOD.replace(":1000:", f":{uid}:"))


@pytest.mark.parametrize(
    ("at", "text", "words"),
    [
        (0, "update", "operation"),
        (1, "0", "key serial"),
        (1, "2147483648", "key serial"),
        (2, "keyring", "key type"),
        (3, "other", "does not begin"),
        (5, "-1", "requestor's uid"),
        (6, "4294967295", "requestor's gid"),
        (7, "x", "thread keyring"),
        (8, "-1", "process keyring"),
        (9, "2147483648", "session keyring"),
    ],
)
def test_arguments_are_strict(at: int, text: str, words: str) -> None:
    arguments = ["create", "5", "user", "lgss:x", GOOD, "0", "0", "0", "0", "0"]
    parse_request(arguments)
    arguments[at] = text
    with pytest.raises(RequestError, match=words):
        parse_request(arguments)


def request(key_type: str, requestor: int, uid: int, flags: str) -> UpcallRequest:
    text = GOOD.replace(":1000:1001:r:", f":{uid}:{uid}:{flags}:")
    return parse_request(
        ["create", "5", key_type, "lgss:x", text, str(requestor), str(requestor), "0", "0", "0"]
    )


@pytest.mark.parametrize(
    ("key_type", "requestor", "uid", "flags", "served"),
    [
        ("user", 1000, 1000, "", True),
        ("lgssc", 1000, 1000, "", True),
        ("user", 0, 1000, "", True),
        ("lgssc", 0, 0, "", True),
        ("user", 1000, 1001, "", False),
        ("lgssc", 1000, 0, "", False),
        ("user", 0, 0, "r", True),
        ("lgssc", 0, 0, "rmo", True),
        ("lgssc", 1000, 0, "r", True),
        ("user", 1000, 0, "r", False),
        ("user", 1000, 1000, "m", False),
    ],
)
def test_whom_to_believe(key_type: str, requestor: int, uid: int, flags: str, served: bool) -> None:
    if served:
        callout.authorize(request(key_type, requestor, uid, flags))
    else:
        with pytest.raises(RefusedError):
            callout.authorize(request(key_type, requestor, uid, flags))
