"""Which principals may stand for this machine: each row of docs/protocol.md 4."""

from __future__ import annotations

import pytest

from lgss_keyring.formats.errors import ResolutionError
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
