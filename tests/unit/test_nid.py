"""NIDs and the names behind them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.errors import ResolutionError
from lgss_keyring.nid import TYPES, Nid, host_name, ip_address, own_host_name, service_name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0x20000C0A80105, "192.168.1.5@tcp"),
        (0x500030A000001, "10.0.0.1@o2ib3"),
        (0x9000000000000, "0@lo"),
        (0xD000000000005, "5@gni"),
        (0xF000100000007, "7@ptl41"),
        (0x10 << 48 | 0x0A000001, "10.0.0.1@kfi"),
        (0x12 << 48 | 0x0A000001, "10.0.0.1@efa"),
    ],
)
def test_text_form(value: int, text: str) -> None:
    nid = Nid.from_int(value)
    assert str(nid) == text
    assert Nid.parse(text) == nid and nid.to_int() == value


@given(st.integers(0, 2**64 - 1))
def test_integers_come_back(value: int) -> None:
    nid = Nid.from_int(value)
    assert nid.to_int() == value
    if nid.network_type in TYPES and not (nid.network_type == 9 and nid.address):
        assert Nid.parse(str(nid)) == nid


@given(st.text(max_size=40))
def test_any_text_is_a_nid_or_a_resolution_error(text: str) -> None:
    try:
        assert Nid.parse(text).to_int() < 2**64
    except ResolutionError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "1.2.3.4",
        "1.2.3@tcp",
        "1.2.3.256@tcp",
        "1.2.3.4@ib",
        "1.2.3.4@tcpx",
        "1@lo",
        "1.2.3.4@tcp65536",
        "1.2.3.4@tcp00000099999",
        "1.2.3.4@tcp" + "9" * 5000,
    ],
)
def test_what_is_no_nid(text: str) -> None:
    with pytest.raises(ResolutionError):
        Nid.parse(text)


def test_addresses() -> None:
    assert ip_address(Nid.parse("192.168.1.5@tcp")) == "192.168.1.5"
    assert ip_address(Nid.parse("0@lo")) == "127.0.0.1"
    for text in ("5@gni", "7@ptl4"):
        with pytest.raises(ResolutionError, match=text):
            ip_address(Nid.parse(text))
    with pytest.raises(ResolutionError):
        ip_address(Nid(5, 99, 0))


def test_lo_is_this_host() -> None:
    assert host_name(Nid.parse("0@lo"), {}) == own_host_name()
    assert host_name(Nid.parse("0@lo"), {"0@lo": "a"}) == "a"


def test_names() -> None:
    nid = Nid.parse("192.0.2.5@tcp")
    assert host_name(nid, {"192.0.2.5@tcp": "a", "192.0.2.5": "b"}) == "a"
    assert host_name(nid, {"192.0.2.5": "b"}) == "b"
    assert host_name(Nid.parse("127.0.0.1@tcp"), {}) == "localhost"
    with pytest.raises(ResolutionError) as caught:
        host_name(nid, {})  # TEST-NET-1 (RFC 5737) has no names
    assert "[hosts]" in caught.value.hint and "192.0.2.5@tcp" in caught.value.reason
    assert [service_name(i, "h") for i in range(3)] == ["lustre_mgs@h", "lustre_mds@h", "lustre_oss@h"]
