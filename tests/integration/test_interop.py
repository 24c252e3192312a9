"""Channel and acceptor against RPCSEC_GSS of another make: libtirpc's, in C."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, user_callout

SOURCE = Path(__file__).with_name("rpcsec_gss_peer.c")
SERVICE = "lustre_mds@localhost"


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("peer") / "peer"
    command = [
        "cc",
        "-O2",
        "-Wall",
        "-Werror",
        "-I/usr/include/tirpc",
        "-o",
        str(program),
        str(SOURCE),
        "-ltirpc",
    ]
    subprocess.run(command, check=True)
    return program


@pytest.fixture
def environment(site: Site, ticket: int) -> dict[str, str]:
    return {
        **os.environ,
        **site.realm.env,
        "KRB5CCNAME": str(site.realm.ccache_of(ticket)),
        "KRB5_KTNAME": str(site.population.server_keytab),
    }


def run_client(peer: Path, port: int, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(peer), "client", str(port), SERVICE]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("fault", [None, "one-byte-fragments"])
def test_initiator_of_libtirpc_with_our_acceptor(
    site: Site, peer: Path, environment: dict[str, str], fault: str | None
) -> None:
    acceptor = site.new_acceptor(*(["--fault", fault] if fault else []))
    done = run_client(peer, acceptor.port, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RPC: Success") == 9  # none, integrity, privacy
    assert len(acceptor.contexts()) == 3
    acceptor.close()


def test_initiator_of_libtirpc_notices_a_bad_verifier(
    site: Site, peer: Path, environment: dict[str, str]
) -> None:
    acceptor = site.new_acceptor("--fault", "bad-verifier")
    assert run_client(peer, acceptor.port, environment).returncode == 1
    acceptor.close()


@pytest.fixture
def foreign_port(peer: Path, environment: dict[str, str]) -> Iterator[int]:
    """The port of libtirpc's acceptor."""
    server = subprocess.Popen(
        [str(peer), "server", SERVICE], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        found = re.search(r"(\d+)$", server.stdout.readline())
        assert found
        yield int(found[1])
    finally:
        server.kill()
        server.communicate()


def test_our_channel_with_the_acceptor_of_libtirpc(site: Site, foreign_port: int) -> None:
    with site.upcalls({"rpcsec_gss": {"port": foreign_port}}) as upcalls, Requestor(USER_UID) as user:
        for _ in range(3):
            decoded = payload.unpack(user.ask(upcalls.name(), user_callout()).data)
            assert isinstance(decoded, payload.ContextPayload)
            assert payload.Krb5Context.unpack(decoded.context).enctype in payload.ENCTYPES
