"""Which principals may stand for this machine: each row of docs/protocol.md 4."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgss_keyring.formats.callout import UpcallRequest, parse_request
from lgss_keyring.formats.config import Config, Krb5
from lgss_keyring.formats.errors import ConfigError, ResolutionError
from lgss_keyring.worker import krb5_library
from lgss_keyring.worker.creds import principals
from lgss_keyring.worker.creds.principals import MachinePrincipals

OWN = "client.site"


def fits(principal: str, flags: str, from_cache: bool = False) -> bool:
    name, _, realm = principal.partition("@")
    rule = MachinePrincipals(flags, b"SITE", lambda: OWN.encode())
    return rule.fits([part.encode() for part in name.split("/")], (realm or "SITE").encode(), from_cache)


FIRST_COMPONENTS = [
    ("lustre_root", "r"),
    ("host", "r"),
    ("lustre_role", "r"),
    ("lustre_mds", "m"),
    ("lustre_oss", "o"),
]


@pytest.mark.parametrize("from_cache", [False, True])
@pytest.mark.parametrize(("first", "flag"), FIRST_COMPONENTS)
def test_first_component_by_flag(first: str, flag: str, from_cache: bool) -> None:
    for flags in ("r", "m", "o", "rm", "ro", "mo", "rmo"):
        assert fits(f"{first}/{OWN}", flags, from_cache) == (flag in flags)
        assert not fits(f"{first}x/{OWN}", flags, from_cache)
        assert not fits(f"{first.upper()}/{OWN}", flags, from_cache)


@pytest.mark.parametrize("flags", ["r", "m", "o", "rmo"])
def test_lustre_mgs_is_accepted_from_a_cache_only(flags: str) -> None:
    assert fits(f"lustre_mgs/{OWN}", flags, from_cache=True)
    assert not fits(f"lustre_mgs/{OWN}", flags)
    assert not fits("lustre_mgs/elsewhere.site", flags, from_cache=True)


@pytest.mark.parametrize("from_cache", [False, True])
@pytest.mark.parametrize("first", ["lustre_root", "host"])
def test_nodemap_as_third_component(first: str, from_cache: bool) -> None:
    assert fits(f"{first}/{OWN}/nodemap", "r", from_cache)
    assert fits(f"{first}/{OWN}/nodemap", "rmo", from_cache)
    assert not fits(f"{first}/elsewhere.site/nodemap", "r", from_cache)
    assert not fits(f"{first}/nodemap/{OWN}", "r", from_cache)
    assert not fits(f"{first}/{OWN}/nodemap/more", "r", from_cache)


@pytest.mark.parametrize("from_cache", [False, True])
def test_second_component_of_a_role_is_a_nodemap_and_not_compared(from_cache: bool) -> None:
    for rest in ("nodemap", OWN, "elsewhere.site", f"{OWN}/nodemap"):
        assert fits(f"lustre_role/{rest}", "r", from_cache)
        assert not fits(f"lustre_role/{rest}", "mo", from_cache)


@pytest.mark.parametrize(("first", "flag"), [*FIRST_COMPONENTS, ("lustre_mgs", "r")])
def test_without_a_host(first: str, flag: str) -> None:
    """From a cache for `r` alone; from a keytab lustre_root and host, whatever the flags."""
    assert fits(first, "r", from_cache=True) == (flag == "r")
    assert not fits(first, "rmo", from_cache=True)
    for flags in ("r", "rm", "rmo"):
        assert fits(first, flags) == (first in ("lustre_root", "host"))
    assert not fits(first, "mo")


@pytest.mark.parametrize("from_cache", [False, True])
def test_realms_and_hosts_are_compared_without_regard_to_case(from_cache: bool) -> None:
    assert fits(f"host/{OWN}@site", "r", from_cache) and fits(f"host/{OWN}@Site", "r", from_cache)
    assert fits(f"host/{OWN.upper()}", "r", from_cache)
    assert not fits(f"host/{OWN}@SITE.OTHER", "r", from_cache)
    assert not fits(f"host/{OWN}.more", "r", from_cache)


def test_name_service_is_asked_only_if_the_answer_depends_on_it() -> None:
    def unknown() -> bytes:
        raise ResolutionError("this node's own name does not resolve")

    rule = MachinePrincipals("rmo", b"SITE", unknown)
    assert rule.fits([b"lustre_root"], b"SITE", False)
    assert rule.fits([b"lustre_role", b"nodemap"], b"SITE", False)
    assert not rule.fits([b"nfs", OWN.encode()], b"SITE", False)
    assert not rule.fits([b"host", OWN.encode()], b"OTHER", False)
    assert "lustre_root/HOST" in str(rule)
    with pytest.raises(ResolutionError):
        rule.fits([b"host", OWN.encode()], b"SITE", False)


def request(realm: str | None = None) -> UpcallRequest:
    callout = "0:krb5:0:0:r:-:1:0x20000c0a80105:lustre-MDT0000-mdc:0x20000c0a80106:0"
    return parse_request(["create", "5", "lgssc", "x", callout, "0", "0", "0", "0", "0"], realm)


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> krb5_library.Context:
    """Of a machine whose krb5.conf names no realm."""
    config = tmp_path / "krb5.conf"
    config.write_text("[libdefaults]\n  dns_lookup_realm = false\n")
    monkeypatch.setenv("KRB5_CONFIG", str(config))
    return krb5_library.new_context()


def test_machine_without_a_default_realm(context: krb5_library.Context) -> None:
    with pytest.raises(ConfigError, match="this machine has no default realm: ") as caught:
        principals.for_request(context, request(), Config())
    assert caught.value.kind == "krb5-conf"
    # The rule's -R names one.
    fitting = principals.for_request(context, request("SITE"), Config())
    assert fitting.fits([b"lustre_root"], b"SITE", False) and not fitting.fits([b"lustre_root"], b"X", False)


def test_principal_of_the_configuration_that_is_none(context: krb5_library.Context) -> None:
    config = Config(krb5=Krb5(principal="a@b@c"))
    with pytest.raises(ConfigError, match=r"\[krb5\] principal a@b@c is no principal"):
        principals.for_request(context, request("SITE"), config)
    config = Config(krb5=Krb5(principal="a@b"))
    assert str(principals.for_request(context, request("SITE"), config)) == "a@b"
