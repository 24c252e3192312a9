"""The examples, as somebody would run them: two processes, a user's, and a real upcall."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.site import Site
from tests.support.stage import CHECKOUT

EXAMPLES = CHECKOUT / "examples"


@pytest.mark.parametrize("name", ["client.py", "server.py"])
def test_forty_lines(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= 40


def test_client_and_server_talk_krb5p(site: Site) -> None:
    site.kinit(0)
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, str(EXAMPLES / "server.py")]
    command.append(str(site.population.server_keytab))
    environment = {**os.environ, **site.realm.env}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.fullmatch(r"listening on (\d+) (\d+)\n", server.stdout.readline())
            assert found
            with site.upcalls({"rpcsec_gss": {"port": int(found[1])}}) as upcalls:
                client = [sys.executable, str(EXAMPLES / "client.py"), found[2], "a message", upcalls.tag]
                done = subprocess.run(client, capture_output=True, text=True, timeout=60)
                assert done.returncode == 0, done.stderr
                assert done.stdout == "egassem a\n"
                assert "krb5p: up to date" in done.stderr
                site.realm.ccache_of(0).unlink()
                done = subprocess.run(client, capture_output=True, text=True, timeout=60)
                assert done.returncode == 1 and "Required key not available" in done.stderr
        finally:
            server.kill()
