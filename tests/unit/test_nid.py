"""NIDs and the names behind them."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.formats.config import Config, Names
from lgss_keyring.formats.errors import ResolutionError
from lgss_keyring.formats.nid import Nid, ip_address
from lgss_keyring.worker import names
from lgss_keyring.worker.names import host_name, own_host_name, own_name, service_name


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
    if not (nid.network_type == 9 and nid.address):
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
        "5@type99",
        "5@type2-1",
        "5@type65536-1",
        "x@type99-1",
        "1.2.3.4@tcp00000099999",
        "1.2.3.4@tcp" + "9" * 5000,
    ],
)
def test_what_is_no_nid(text: str) -> None:
    with pytest.raises(ResolutionError):
        Nid.parse(text)


@pytest.fixture(autouse=True)
def no_name_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the resolver told another test counts for a second."""
    monkeypatch.setattr(names, "_found", {})


def test_addresses() -> None:
    assert ip_address(Nid.parse("192.168.1.5@tcp")) == "192.168.1.5"
    assert ip_address(Nid.parse("0@lo")) == "127.0.0.1"
    for text in ("5@gni", "7@ptl4"):
        with pytest.raises(ResolutionError, match=text):
            ip_address(Nid.parse(text))
    with pytest.raises(ResolutionError):
        ip_address(Nid(5, 99, 0))


def hosts(table: dict[str, str], **names: Any) -> Config:
    return Config(hosts=table, names=Names(**names))


def test_lo_is_this_host() -> None:
    assert host_name(Nid.parse("0@lo"), Config()) == own_host_name(Config())
    assert host_name(Nid.parse("0@lo"), hosts({"0@lo": "a"})) == "a"
    with pytest.raises(ResolutionError):
        host_name(Nid(1, 9, 0), Config())


def test_names() -> None:
    nid = Nid.parse("192.0.2.5@tcp")
    assert host_name(nid, hosts({"192.0.2.5@tcp": "a", "192.0.2.5": "b"})) == "a"
    assert host_name(nid, hosts({"192.0.2.5": "b"})) == "b"
    assert host_name(Nid.parse("127.0.0.1@tcp"), Config()) == "localhost"
    with pytest.raises(ResolutionError) as caught:
        host_name(nid, Config())  # TEST-NET-1 (RFC 5737) has no names
    assert "[hosts]" in caught.value.hint and "192.0.2.5@tcp" in caught.value.reason
    assert [service_name(i, "h") for i in range(3)] == ["lustre_mgs@h", "lustre_mds@h", "lustre_oss@h"]


def test_own_name_is_that_of_the_own_nid_or_the_nodes() -> None:
    nid = Nid.parse("192.0.2.6@tcp").to_int()
    assert own_name(nid, hosts({"192.0.2.6": "own"})) == "own"
    assert own_name(0, Config()) == own_host_name(Config())
    node = os.uname().nodename
    assert own_name(0, hosts({}, canonicalize=False)) == node
    assert own_name(0, hosts({node: "table"})) == "table"


def test_own_name_is_the_canonical_one_unless_canonicalize_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    canonical = ["node.example.com"]

    def resolve(*arguments: object, **flags: object) -> list[tuple[int, int, int, str, object]]:
        asked.append(arguments[0])
        return [(2, 1, 6, canonical[0], ("192.0.2.7", 0))]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    node = os.uname().nodename
    assert own_host_name(hosts({}, canonicalize=False)) == node and asked == []
    assert own_host_name(hosts({})) == "node.example.com" and asked == [os.fsencode(node)]
    canonical[0] = ""
    assert own_host_name(hosts({})) == "node.example.com"  # the last answer, for a second
    names._found.clear()
    assert own_host_name(hosts({})) == node


def test_own_name_that_does_not_resolve_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    with pytest.raises(ResolutionError, match="does not resolve: Name or service not known") as caught:
        own_host_name(Config())
    assert caught.value.kind == "no-host-name" and "/etc/hosts" in caught.value.hint


def test_table_instead_of_reverse_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getnameinfo", lambda *_: pytest.fail("the resolver was asked"))
    config = hosts({"192.0.2.5": "b"}, reverse_dns=False)
    assert host_name(Nid.parse("192.0.2.5@tcp"), config) == "b"
    with pytest.raises(ResolutionError) as caught:
        host_name(Nid.parse("127.0.0.1@tcp"), config)
    assert caught.value.kind == "no-host-name" and "reverse_dns is off" in caught.value.reason


def test_silent_resolver_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getnameinfo", lambda *_: time.sleep(5))
    started = time.monotonic()
    with pytest.raises(ResolutionError) as caught:
        host_name(Nid.parse("192.0.2.5@tcp"), hosts({}, timeout=0.3))
    assert 0.2 < time.monotonic() - started < 3
    assert (caught.value.kind, caught.value.errno) == ("name-timeout", errno.ETIMEDOUT)
    assert "within 0.3 s" in caught.value.reason and "[names] timeout" in caught.value.hint


@pytest.mark.parametrize("text", ["5@gni", "1@gni3"])
def test_networks_without_names(text: str) -> None:
    with pytest.raises(ResolutionError, match=text) as caught:
        host_name(Nid.parse(text), Config())
    assert "[hosts]" in caught.value.hint
    assert host_name(Nid.parse(text), hosts({text: "a"})) == "a"
