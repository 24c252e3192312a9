"""Where a hint sends an administrator: the realm, the host's name, the closed folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from lgss_keyring.formats.config import Config, Krb5
from lgss_keyring.formats.errors import Kind, ResolutionError
from lgss_keyring.formats.nid import Nid
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.worker import krb5_conf, paths
from lgss_keyring.worker.creds.principals import MachinePrincipals
from lgss_keyring.worker.names import own_name_source


def principals(only: str = "", host: bytes = b"client.test") -> MachinePrincipals:
    return MachinePrincipals("r", b"HERE.TEST", lambda: host, only, lambda: "uname")


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([([b"host", b"client.test"], b"THERE.TEST")], "-R THERE.TEST in the request-key rule"),
        (
            [([b"host", b"other.test"], b"HERE.TEST")],
            "for other.test, and this host's name client.test comes from uname",
        ),
        ([([b"alice"], b"THERE.TEST")], "create one of them"),
        ([([b"host", b"other.test"], b"THERE.TEST")], "create one of them"),
        ([([b"nfs", b"client.test"], b"HERE.TEST")], "create one of them"),
        ([], "create one of them"),
    ],
)
def test_advice_for_a_keytab(others: list[tuple[list[bytes], bytes]], words: str) -> None:
    assert words in principals().advice(others)


def test_advice_for_the_principal_of_the_configuration() -> None:
    assert "correct [krb5] principal" in principals("special@HERE.TEST").advice([])


def test_advice_without_a_host_name() -> None:
    def unknown() -> bytes:
        raise ResolutionError("no name")

    others = [([b"host", b"client.test"], b"THERE.TEST")]
    assert "create one of them" in MachinePrincipals("r", b"HERE.TEST", unknown).advice(others)


@pytest.mark.parametrize(
    ("nid", "hosts", "source"),
    [
        ("192.0.2.5@tcp", {"192.0.2.5@tcp": "a"}, '[hosts] of /x.toml, by "192.0.2.5@tcp"'),
        ("192.0.2.5@tcp", {"192.0.2.5": "a"}, '[hosts] of /x.toml, by "192.0.2.5"'),
        ("192.0.2.5@tcp", {}, "reverse DNS or /etc/hosts, for address 192.0.2.5 of NID 192.0.2.5@tcp"),
        ("5@ptl4", {}, "/etc/lustre/nid2hostname, for NID 5@ptl4"),
        ("0@lo", {}, f"the host name {os.uname().nodename} (uname -n) and the name service"),
        ("0@lo", {os.uname().nodename: "a"}, f'[hosts] of /x.toml, by "{os.uname().nodename}"'),
        ("", {}, f"the host name {os.uname().nodename} (uname -n) and the name service"),
    ],
)
def test_source_of_this_hosts_name(nid: str, hosts: dict[str, str], source: str) -> None:
    number = Nid.parse(nid).to_int() if nid else 0
    assert own_name_source(number, Config(hosts=hosts, path="/x.toml")) == source


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who finds a folder closed")
def test_first_closed_folder() -> None:
    # Not pytest's folder, which is closed to others itself.
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        folder = Path(top) / "closed" / "below"
        folder.mkdir(parents=True)
        assert paths.closed_folder(str(folder / "file")) == ""
        folder.parent.chmod(0o700)
        pid = os.fork()
        if pid == 0:
            os.setresuid(61391, 61391, 61391)
            os._exit(paths.closed_folder(str(folder / "file")) != str(folder.parent))
        assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("kind", [Kind.NO_TICKET, Kind.KDC_UNREACHABLE, Kind.KRB5_CONF])
def test_krb5_conf_of_the_setting_that_is_not_there(kind: str) -> None:
    failure = Failed(126, 0, kind, "no ticket")
    explained = krb5_conf.with_missing_file(failure, Krb5(config="/nonexistent/a:/nonexistent/b"))
    assert explained.kind == Kind.KRB5_CONF and "(so: no ticket)" in explained.reason
    assert "/nonexistent/a or /nonexistent/b: there is no such file" in explained.reason
    assert krb5_conf.with_missing_file(failure, Krb5(config=f"/nonexistent/a:{__file__}")) is failure


def test_other_failures_are_not_blamed_on_krb5_conf() -> None:
    failure = Failed(111, 0, Kind.ACCEPTOR_UNREACHABLE, "cannot connect")
    assert krb5_conf.with_missing_file(failure, Krb5(config="/nonexistent/a")) is failure
    # DNS can do what the default file does.
    no_ticket = Failed(126, 0, Kind.NO_TICKET, "no ticket")
    assert krb5_conf.with_missing_file(no_ticket, Krb5()) is no_ticket
