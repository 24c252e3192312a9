"""The throw-away realm: what tests, demo and bench rely on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import realm as module
from tests.support import runs
from tests.support.realm import Realm, RealmError
from tests.support.site import USER_UID

UID = USER_UID + 1


@pytest.fixture(scope="module")
def realm() -> Iterator[Realm]:
    with Realm() as realm:
        realm.populate("localhost")
        yield realm


def as_user(realm: Realm, *command: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *command],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", **realm.env},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


def test_a_user_finds_their_ticket_and_gets_a_service_ticket(realm: Realm) -> None:
    realm.kinit("alice", UID, UID)
    status = realm.ccache_of(UID).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (UID, UID, 0o600)
    done = as_user(realm, "kvno", "lustre_mds/localhost")
    assert done.returncode == 0, done.stdout
    assert "kvno = " in done.stdout


def test_keytabs_and_secrets_are_for_root_only(realm: Realm) -> None:
    for name in ("server.keytab", "machine.keytab", "user.keytab", "stash", "principal"):
        status = (realm.directory / name).stat()
        assert (status.st_uid, status.st_mode & 0o077) == (0, 0), name


def test_a_short_ticket_expires(realm: Realm) -> None:
    realm.kinit("alice", UID, UID, lifetime=1)
    time.sleep(1.5)
    assert as_user(realm, "klist", "-s").returncode == 1
    realm.kinit("alice", UID, UID)
    assert as_user(realm, "klist", "-s").returncode == 0


def test_kdc_stops_and_starts_on_its_port(realm: Realm) -> None:
    port = realm.port
    realm.stop_kdc()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    realm.start_kdc()
    assert realm.port == port
    realm.kinit("alice", UID, UID)


def test_a_paused_kdc_is_silent(realm: Realm) -> None:
    realm.kinit("alice", UID, UID)
    realm.pause_kdc()
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            as_user(realm, "kvno", "lustre_oss/localhost", timeout=0.7)
    finally:
        realm.resume_kdc()
    assert as_user(realm, "kvno", "lustre_oss/localhost").returncode == 0


def test_two_realms_at_once_and_nothing_left(realm: Realm) -> None:
    with pytest.raises(KeyError), Realm(enctypes=["aes128-cts-hmac-sha256-128"]) as other:
        assert other.port != realm.port
        directory, port = other.directory, other.port
        raise KeyError
    assert not directory.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_the_kdc_dies_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import time; from tests.support.realm import Realm\n"
        "r = Realm(); print(r.port, r.directory, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    port, directory = child.stdout.readline().split()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    try:
        end = time.monotonic() + 5
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(port)), 1).close()
            except ConnectionRefusedError:
                break
            except OSError:
                pass  # it was accepted by one that was just dying
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        runs.remove(Path(directory))  # a killed process cannot do it


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(module, "SBIN", ())
    before = set(runs.FOLDER.glob(f"realm-{runs.tag()}-*"))
    with pytest.raises(RealmError, match="krb5-kdc"):
        Realm()
    assert set(runs.FOLDER.glob(f"realm-{runs.tag()}-*")) == before


def test_a_failing_tool_says_why(realm: Realm) -> None:
    with pytest.raises(RealmError, match="nobody"):
        realm.kinit("nobody", UID, UID)
