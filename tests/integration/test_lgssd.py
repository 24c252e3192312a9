"""lgssd: contexts through a socket, no key at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from lgss_keyring import sptlrpc
from lgss_keyring.formats import payload, pipe
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.nid import PTL4
from tests.support.site import HOST, STRANGER_UID, USER_UID, Site

from .lgssd_process import TARGET, Daemon, upcall
from .library import Peer, in_user
from .waiting import pace, within


def test_contexts_through_the_pipe(site: Site, peer: Peer, daemon: Daemon) -> None:
    site.kinit()
    with sptlrpc.create_policy("pipe", path=daemon.path) as policy:
        with policy.create_sec(TARGET, "krb5p") as sec, sec.lookup_ctx(USER_UID) as context:
            assert context.refresh(10).key == 0
            assert daemon.path in context.display()
            sealed = context.seal(b"gss", b"message")
            head, (header, token) = peer.ask(context, {"op": "seal", "length": 7}, b"gss", sealed)
            assert context.unseal(header, token, head["length"]) == b"egassem"
            with sec.lookup_ctx(USER_UID) as again:
                assert again is context
        assert policy.alive == 0


def test_many_users_at_once(site: Site, daemon: Daemon) -> None:
    uids = list(range(USER_UID + 116, USER_UID + 124))
    for uid in uids:
        site.kinit(uid)
    with sptlrpc.create_policy("pipe", path=daemon.path) as policy:
        with policy.create_sec(TARGET, "krb5i") as sec:
            contexts = [sec.lookup_ctx(uid) for uid in uids]
            futures = [context.refresh_later() for context in contexts]
            assert [future.result(10) for future in futures] == contexts
            assert len({context.handle for context in contexts}) == len(uids)
            for context in contexts:
                sec.release_ctx(context)


def test_ordinary_peer_gets_their_own_alone(site: Site, daemon: Daemon) -> None:
    site.kinit()
    site.kinit(STRANGER_UID)

    def asks_for(uid: int) -> int:
        _, answer = daemon.ask(upcall(uid).pack())
        return answer.rpc_error if isinstance(answer, payload.FailurePayload) else 0

    assert in_user(USER_UID, lambda: asks_for(USER_UID)) == 0
    assert in_user(USER_UID, lambda: asks_for(STRANGER_UID)) == errno.EACCES
    assert in_user(USER_UID, lambda: asks_for(0)) == errno.EACCES  # `r`, the machine's
    assert "may not ask for" in daemon.log_file.read_text()


@pytest.mark.parametrize("claimed", [0, 61777])
def test_group_that_a_peer_claims_is_not_taken(site: Site, daemon: Daemon, claimed: int) -> None:
    """The user, who has no passwd entry, works with the gid that the kernel tells of them."""
    site.kinit()
    gid = 61778

    def ask() -> bool:
        _, answer = daemon.ask(upcall(USER_UID, gid=claimed).pack())
        return isinstance(answer, payload.ContextPayload)

    assert in_user(USER_UID, ask, gid=gid)
    assert f"working as uid {USER_UID}, gid {gid} |" in daemon.log_file.read_text()


def test_machine(site: Site, daemon: Daemon) -> None:
    """For root alone: see test_ordinary_peer_gets_their_own_alone."""
    with sptlrpc.create_policy("pipe", path=daemon.path) as policy, policy.create_sec(TARGET, "krb5i") as sec:
        sec.release_ctx(sec.lookup_ctx(0).refresh(10))
    assert f"established as lustre_root/{HOST}@" in daemon.log_file.read_text()


def test_failures_are_told(site: Site, daemon: Daemon) -> None:
    uid = USER_UID + 126
    site.realm.ccache_of(uid).unlink(missing_ok=True)
    seq, answer = daemon.ask(upcall(uid, seq=77).pack())
    assert (seq, answer) == (77, payload.FailurePayload(errno.ENOKEY, 7 << 16))
    _, answer = daemon.ask(upcall(nid=13 << 48 | 5).pack())
    assert answer == payload.FailurePayload(errno.EHOSTUNREACH, 0)
    lines = daemon.log_file.read_text().splitlines()
    assert any(f'or [hosts]: "5@gni" = "NAME" (in {daemon.config})' in line for line in lines)
    assert all("LGSS_REQUESTOR=0" in line for line in lines if "LGSS_ERROR" in line)
    with sptlrpc.create_policy("pipe", path=daemon.path) as policy:
        with policy.create_sec(TARGET, "krb5i") as sec, sec.lookup_ctx(uid) as context:
            with pytest.raises(LgssError) as caught:
                context.refresh(10)
            assert (caught.value.errno, caught.value.kind) == (errno.ENOKEY, "upcall")


def test_silent_kdc_has_a_deadline(site: Site, peer: Peer) -> None:
    daemon = Daemon(site, peer.port, timeout=1)
    site.kinit()
    site.realm.pause_kdc()
    try:
        started = time.monotonic()
        _, answer = daemon.ask(upcall().pack())
        assert answer == payload.FailurePayload(errno.ETIMEDOUT, 0)
        assert pace.met(time.monotonic() - started, 2.5)
    finally:
        site.realm.resume_kdc()
        daemon.close()


def test_a_record_whose_worker_is_killed_is_served_by_the_next(site: Site, daemon: Daemon) -> None:
    site.kinit()
    site.realm.pause_kdc()
    try:
        with daemon.connect() as connection:
            connection.send(upcall(seq=9).pack())
            assert within(2, lambda: len(daemon.children()) == 1)
            (first,) = daemon.children()
            os.kill(int(first), signal.SIGKILL)
            assert within(2, lambda: len(daemon.children()) == 1 and daemon.children() != [first])
            site.realm.resume_kdc()
            seq, answer = pipe.unpack_downcall(connection.recv(pipe.DOWNCALL_LIMIT))
            assert seq == 9 and isinstance(answer, payload.ContextPayload)
    finally:
        site.realm.resume_kdc()


def test_a_network_without_ip_addresses(daemon: Daemon) -> None:
    """No program of root's is asked for the name of a host that cannot be reached from here."""
    _, answer = daemon.ask(upcall(nid=PTL4 << 48 | 5).pack())
    assert answer == payload.FailurePayload(errno.EHOSTUNREACH, 0)
    assert "NID 5@ptl4 has no IP address" in daemon.log_file.read_text()


def test_without_keyrings(site: Site, peer: Peer) -> None:
    """As in most containers: keyctl(2), add_key(2) and request_key(2) are forbidden."""
    site.kinit()
    daemon = Daemon(site, peer.port, wrapper=[sys.executable, "-c", NO_KEYRINGS])
    try:
        assert isinstance(daemon.ask(upcall().pack())[1], payload.ContextPayload)
        assert isinstance(daemon.ask(upcall(0).pack())[1], payload.ContextPayload)
    finally:
        daemon.close()


# A seccomp filter (seccomp(2)) for x86-64 and arm64, whose numbers differ: EPERM, as Docker's.
NO_KEYRINGS = """
import ctypes, os, platform, struct, sys
calls = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[platform.machine()]
program = [(0x20, 0, 0, 0)]
for at, number in enumerate(calls):
    program.append((0x15, len(calls) - at, 0, number))
program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
libc = ctypes.CDLL(None, use_errno=True)
filter = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
assert libc.syscall(calls[2], 0, -3, 0) == -1 and ctypes.get_errno() == 1
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_no_file_is_taken_for_a_stale_socket(site: Site, daemon: Daemon) -> None:
    path = site.directory / "precious"
    path.write_text("data")
    command = [sys.executable, "-m", "lgss_keyring.daemon", "--socket", str(path)]
    done = subprocess.run(
        [*command, "--config", str(daemon.config)], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1 and "Address already in use" in done.stderr
    assert path.read_text() == "data"


def test_second_lgssd_and_a_stale_socket(site: Site, peer: Peer, daemon: Daemon) -> None:
    command = [sys.executable, "-m", "lgss_keyring.daemon", "--socket", daemon.path]
    done = subprocess.run(
        [*command, "--config", str(daemon.config)], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1 and "Address already in use" in done.stderr
    other = Daemon(site, peer.port)
    other.process.kill()
    other.process.wait()
    assert os.path.exists(other.path)
    again = subprocess.Popen(
        [*command[:-1], other.path, "--config", str(other.config)], stdout=subprocess.PIPE, text=True
    )
    assert again.stdout is not None and again.stdout.readline() == f"listening at {other.path}\n"
    again.terminate()
    assert again.wait(5) == 0
    again.stdout.close()
