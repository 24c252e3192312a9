"""lgssd in a process of its own, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring.formats import payload, pipe
from lgss_keyring.sptlrpc import Target
from tests.support.site import HOST, LOOPBACK_NID, USER_UID, Site

from .library import Peer

TARGET = Target(LOOPBACK_NID, 1, "lgss-MDT0000-mdc")


class Daemon:
    """lgssd in a process of its own."""

    def __init__(
        self,
        site: Site,
        port: int,
        wrapper: list[str] | None = None,
        level: str = "debug",
        more: Mapping[str, Mapping[str, Any]] | None = None,
        **upcall: Any,
    ) -> None:
        """``more``: settings of other sections than [upcall], which has ``upcall``."""
        self.path = str(site.directory / f"lgssd-{time.monotonic_ns()}.socket")
        settings: dict[str, dict[str, Any]] = {
            "log": {"level": level},
            "rpcsec_gss": {"port": port},
            "upcall": {"timeout": 5, **upcall},
            # A record of the pipe does not tell this node's NID, by whose name it is found else.
            "krb5": {"principal": f"lustre_root/{HOST}"},
        }
        for section, values in (more or {}).items():
            settings.setdefault(section, {}).update(values)
        with site.upcalls(settings) as upcalls:  # for its configuration; the rule is not needed
            self.config, self.log_file = upcalls.config_file, upcalls.log_file
        command = ["setpriv", "--pdeathsig", "KILL", *(wrapper or [])]
        command += [sys.executable, "-m", "lgss_keyring.daemon"]
        self.upcall_path = f"{self.path}.upcalls"
        command += ["--socket", self.path, "--upcall-socket", self.upcall_path]
        command += ["--config", str(self.config)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"listening at {self.path}\n"
        self.pid = self.process.pid

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.path)
        connection.settimeout(10)
        return connection

    def ask(self, record: bytes) -> tuple[int, payload.ContextPayload | payload.FailurePayload]:
        with self.connect() as connection:
            connection.send(record)
            return pipe.unpack_downcall(connection.recv(pipe.DOWNCALL_LIMIT))

    def children(self) -> list[str]:
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(10) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert not os.path.exists(self.path)


@pytest.fixture(scope="module")
def peer(site: Site) -> Iterator[Peer]:
    peer = Peer(site)
    yield peer
    peer.close()


@pytest.fixture
def daemon(site: Site, peer: Peer) -> Iterator[Daemon]:
    daemon = Daemon(site, peer.port)
    yield daemon
    daemon.close()


def upcall(uid: int = USER_UID, seq: int = 1, **more: Any) -> pipe.Upcall:
    values = {"gid": uid, "service": 1, "nid": LOOPBACK_NID, "obd_name": "lgss-MDT0000-mdc", **more}
    return pipe.Upcall(seq=seq, uid=uid, **values)
