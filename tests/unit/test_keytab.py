"""The machine's keytab: which entry is taken, and what is said about one that cannot be read."""

from __future__ import annotations

import struct
import types
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.formats.config import Config, ContainerKrb5, Krb5, Names
from lgss_keyring.formats.errors import CredentialError
from lgss_keyring.worker import krb5_library, work
from lgss_keyring.worker.creds import machine


def entry(name: str, realm: str = "SITE", enctype: int = 18) -> bytes:
    """An entry of a keytab of version 2, with its length."""
    body = struct.pack(">H", len(name.split("/")))
    for part in (realm, *name.split("/")):
        body += struct.pack(">H", len(part)) + part.encode()
    body += struct.pack(">IIBHH", 1, 0, 3, enctype, 32) + bytes(32)
    return struct.pack(">i", len(body)) + body


class Fitting:
    """Stands for the rule which principals fit: those of this name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[str] = []

    def __str__(self) -> str:
        return self.name

    def accepts(self, principal: krb5_library.Principal, from_cache: bool = False) -> bool:
        self.asked.append(str(principal))
        return str(principal) == self.name

    def advice(self, parts: list[tuple[list[bytes], bytes]]) -> str:
        return f"it has {len(parts)}"


@pytest.fixture
def keytab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    config = tmp_path / "krb5.conf"
    config.write_text("[libdefaults]\n  dns_lookup_realm = false\n")
    monkeypatch.setenv("KRB5_CONFIG", str(config))
    return tmp_path / "keytab"


def search(keytab: Path, fitting: Fitting) -> machine._Search:
    found = object.__new__(machine._Search)
    values = types.SimpleNamespace(
        _context=krb5_library.new_context(), _principals=fitting, _krb5=Krb5(keytab=f"FILE:{keytab}")
    )
    found.__dict__.update(values.__dict__)
    return found


def test_the_first_entry_that_fits_is_taken(keytab: Path) -> None:
    """Each principal is looked at once, however many enctypes its key has."""
    entries = [entry("host/a", enctype=17), entry("host/a"), entry("host/b"), entry("host/c")]
    keytab.write_bytes(b"\5\2" + b"".join(entries))
    fitting = Fitting("host/b@SITE")
    assert str(search(keytab, fitting).keytab_entry()[1]) == "host/b@SITE"
    assert fitting.asked == ["host/a@SITE", "host/b@SITE"]


def test_a_keytab_without_a_fitting_entry(keytab: Path) -> None:
    keytab.write_bytes(b"\5\2" + entry("host/b") + entry("host/a", "OTHER"))
    with pytest.raises(CredentialError) as caught:
        search(keytab, Fitting("host/c@SITE")).keytab_entry()
    assert (caught.value.kind, caught.value.hint) == ("not-in-keytab", "it has 2")
    assert caught.value.reason.endswith(
        "none of the principals host/c@SITE; it has host/a@OTHER, host/b@SITE"
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"no keytab", b"\5\7" + entry("host/b")],
    ids=["empty", "garbage", "another version"],
)
def test_a_damaged_keytab_is_called_unreadable(keytab: Path, content: bytes) -> None:
    """And not one without a fitting entry: the cure is another one."""
    keytab.write_bytes(content)
    with pytest.raises(CredentialError, match="cannot read keytab ") as caught:
        search(keytab, Fitting("host/b@SITE")).keytab_entry()
    assert caught.value.kind == "keytab-unreadable" and "make it anew" in caught.value.hint


def test_a_keytab_that_is_not_there(keytab: Path) -> None:
    with pytest.raises(CredentialError, match="No such file or directory") as caught:
        search(keytab, Fitting("host/b@SITE")).keytab_entry()
    assert caught.value.kind == "keytab-missing"
    keytab.mkdir()
    with pytest.raises(CredentialError) as caught:
        search(keytab, Fitting("host/b@SITE")).keytab_entry()
    assert caught.value.kind == "keytab-unreadable"


def test_a_containers_keytab_takes_the_place_of_the_hosts() -> None:
    """Nothing of the host's caches is used with it either (CVE-2021-20208)."""
    asked: list[str] = []

    class Found:
        def open_below(self, path: str) -> int:
            asked.append(path)
            return 77

    found: Any = Found()
    host = Config(
        krb5=Krb5(keytab="FILE:/etc/the.keytab", principal="host/a"), names=Names(reverse_dns=False)
    )
    settings = work._for_container(host, found)
    assert asked == ["/etc/the.keytab"] and isinstance(settings.krb5, ContainerKrb5)
    assert (settings.krb5.keytab, settings.krb5.principal) == ("FILE:/proc/self/fd/77", "host/a")
    assert settings.names == host.names and settings.upcall == host.upcall
