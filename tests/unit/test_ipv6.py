"""Servers with IPv6 NIDs, of which a kernel passes wrong numbers and names with colons."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.formats.callout import UpcallRequest, parse_callout, parse_request
from lgss_keyring.formats.config import Config, Names
from lgss_keyring.formats.errors import RequestError, ResolutionError
from lgss_keyring.formats.nid import Nid, ipv6_nid_of_mgc
from lgss_keyring.worker import names

MGC = "MGCfd00:1::5@tcp"
WRONG_NID = 2 << 48 | 0xFD000001
"""What a kernel makes of fd00:1::5@tcp: its first 32 bits."""


def text(obd_name: str, tail: str, nid: int = WRONG_NID) -> str:
    return f"0:krb5:0:0:rmo:-:0:0x{nid:x}:{obd_name}:0x20000fd000001:1{tail}"


def request(obd_name: str, nid: int = WRONG_NID) -> UpcallRequest:
    return parse_request(
        ["create", "5", "lgssc", "0@0", text(obd_name, ":b8ae9dc4", nid), "0", "0", "0", "0", "0"]
    )


def settings(hosts: dict[str, str], **names: Any) -> Config:
    return Config(hosts=hosts, names=Names(**names))


@pytest.mark.parametrize("tail", ["", ":b8ae9dc4-1", ":17", ":0x17"])
@pytest.mark.parametrize("obd_name", [MGC, "MGC::1@o2ib3", "MGC2001:db8:1:2:3:4:5:6@tcp", "lustre-MDT0000"])
def test_fields_are_counted_from_both_ends(obd_name: str, tail: str) -> None:
    fields = parse_callout(text(obd_name, tail))
    assert (fields.obd_name, fields.self_nid, fields.pid) == (obd_name, 0x20000FD000001, 1)
    assert fields.client_uuid == (tail[1:] or None)


@pytest.mark.parametrize(
    "obd_name",
    [
        "lustre:MDT0000",
        "lustre:a:b@tcp",
        "MGC1:2",
        "MGC::1",
        "MGC::1@gni",
        "MGC::g@tcp",
        ":::",
    ],
)
def test_no_other_name_has_colons(obd_name: str) -> None:
    for tail in ("", ":b8ae9dc4"):
        if len(text(obd_name, tail).split(":")) == 12:
            continue  # the last field is the uuid then, and what is before it no number
        with pytest.raises(RequestError, match="fields instead of 11 or 12"):
            parse_callout(text(obd_name, tail))


@given(st.lists(st.sampled_from(["MGC", "::", ":", "1", "0x1", "@tcp", "fe80", "a-b"]), max_size=20))
def test_the_form_of_the_name_decides(parts: list[str]) -> None:
    try:
        fields = parse_callout(text("".join(parts), ":b8ae9dc4"))
    except RequestError:
        return
    assert ":" not in fields.obd_name or ipv6_nid_of_mgc(fields.obd_name)


def test_long_names_are_taken() -> None:
    assert len(parse_callout(text("x" * 127, "")).obd_name) == 127
    with pytest.raises(RequestError, match="obd name"):
        parse_callout(text("x" * 128, ""))


def test_host_of_an_mgc_is_that_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(address: tuple[str, int], flags: int) -> tuple[str, str]:
        asked.append(address[0])
        return "mgs.example", ""

    monkeypatch.setattr(socket, "getnameinfo", resolve)
    assert names.target_host_name(request(MGC), Config()) == "mgs.example"
    assert asked == ["fd00:1::5"]
    for key in (MGC, "fd00:1::5@tcp", "fd00:1::5"):
        assert names.target_host_name(request(MGC), settings({key: "table"})) == "table"
    with pytest.raises(ResolutionError, match="reverse_dns is off"):
        names.target_host_name(request(MGC), settings({}, reverse_dns=False))


def test_mgc_with_an_ipv4_nid_is_named_by_field_7() -> None:
    """After a failover the connection is to another server than the one in the name."""
    nid = Nid.parse("192.0.2.7@tcp").to_int()
    table = settings({"192.0.2.7": "second", "192.0.2.6": "first"})
    assert names.target_host_name(request("MGC192.0.2.6@tcp", nid), table) == "second"


def test_target_of_a_wrong_nid_is_named_in_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getnameinfo", lambda *_: pytest.fail("the resolver was asked"))
    target = request("lustre-MDT0000-mdc-ffff9c0e")
    with pytest.raises(ResolutionError, match="cannot pass IPv6 NIDs here yet") as caught:
        names.target_host_name(target, Config())
    assert caught.value.kind == "no-host-name"
    assert 'name the host in [hosts]: "lustre-MDT0000" = "NAME"' in caught.value.hint
    for key in ("lustre-MDT0000", "lustre-MDT0000-mdc-ffff9c0e"):
        assert names.target_host_name(target, settings({key: "mds"})) == "mds"


def test_global_address_that_looks_like_ipv4_has_the_hint_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object) -> tuple[str, str]:
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getnameinfo", resolve)
    for first, expected in ((0x20010DB8, True), (0xC0000205, False)):
        with pytest.raises(ResolutionError) as caught:
            names.target_host_name(request("lustre-OST0000-osc-f", 2 << 48 | first), Config())
        assert ("IPv6" in caught.value.reason) == expected


def test_own_wrong_nid_names_nobody() -> None:
    assert names.own_name(WRONG_NID, settings({}, canonicalize=False)) == names.own_host_name(
        settings({}, canonicalize=False)
    )
