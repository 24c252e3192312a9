"""The library over real keys: contexts by real upcalls, messages with a peer in another
process.  Use cases and operations are those of docs/design-2008.md (4, 5.2)."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lgss_keyring import sptlrpc
from lgss_keyring.formats.errors import GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN, GSS_S_DUPLICATE_TOKEN, LgssError
from lgss_keyring.front import keyctl
from lgss_keyring.sptlrpc import Context, SecurityObject, State, Target
from lgss_keyring.sptlrpc.keyring import KeyringPolicy
from lgss_keyring.system import keyrings
from tests.support import keyutils, server
from tests.support.site import LOOPBACK_NID, USER_UID, Site, Upcalls
from tests.support.stage import CHECKOUT, Stage

from .conftest import within

TARGET = Target(LOOPBACK_NID, 1, "lgss-MDT0000-mdc", LOOPBACK_NID, "client-uuid", 1)


def policy_of(upcalls: Upcalls, **options: Any) -> KeyringPolicy:
    made = sptlrpc.create_policy("keyring", prefix=upcalls.tag, **options)
    assert isinstance(made, KeyringPolicy)
    return made


@pytest.fixture
def policy(upcalls: Upcalls) -> Iterator[KeyringPolicy]:
    policy = policy_of(upcalls)
    with policy:
        yield policy
        assert within(3, lambda: policy.alive == 0), "a context was not released"
    # Invalidated keys are collected a moment later.
    assert within(5, lambda: not living(upcalls.tag)), living(upcalls.tag)


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """Take away what the kernel's collector would take in five minutes: keys that were
    rejected or have expired, in root's user keyring."""
    yield
    ours = re.compile(rf" lgss(:{os.getpid()}\.|-no-rule:)")
    lines = [line for line in Path("/proc/keys").read_text().splitlines() if ours.search(line)]
    ring = keyrings.serial_of(keyrings.USER)
    for serial in (int(line.split()[0], 16) for line in lines):
        if serial in keyrings.members(ring):
            keyrings.unlink(serial, ring)


def living(tag: str) -> list[str]:
    """Keys of this policy's that can still be found: not those that the kernel's collector
    takes when it comes by, invalidated or expired."""
    lines = [line for line in Path("/proc/keys").read_text().splitlines() if tag in line]
    return [line for line in lines if "i" not in line.split()[1] and line.split()[3] != "expd"]


@pytest.fixture
def sec(policy: KeyringPolicy) -> Iterator[SecurityObject]:
    with policy.create_sec(TARGET, "krb5p") as sec:
        yield sec


def exists(key: int) -> bool:
    try:
        keyutils.describe_key(key)
    except keyutils.Error:
        return False
    return True


class Peer:
    """The message server in a process of its own, and connections to it."""

    def __init__(self, site: Site) -> None:
        directory = site.directory / f"peer-{time.monotonic_ns()}"
        directory.mkdir()
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.support.server"]
        command += ["--keytab", str(site.population.server_keytab), "--directory", str(directory)]
        env = {**os.environ, **site.realm.env}
        self._process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = re.fullmatch(r"listening on (\d+) (\d+)\n", self._process.stdout.readline())
        assert found
        self.port, self._messages = int(found[1]), int(found[2])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._messages), 10)

    def ask(
        self, context: Context, head: dict[str, Any], *blobs: bytes
    ) -> tuple[dict[str, Any], list[bytes]]:
        with self.connect() as connection:
            names = {"handle": context.handle.hex(), "flavor": str(context.sec.flavor)}
            server.send(connection, {**names, **head}, *blobs)
            return server.receive(connection)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def peer(site: Site) -> Iterator[Peer]:
    peer = Peer(site)
    yield peer
    peer.close()


@pytest.fixture
def talking(site: Site, peer: Peer) -> Iterator[KeyringPolicy]:
    """A policy whose contexts the peer has, too."""
    with site.upcalls({"rpcsec_gss": {"port": peer.port}}) as upcalls:
        policy = policy_of(upcalls)
        with policy:
            yield policy
        assert within(3, lambda: policy.alive == 0)


def in_user(uid: int, work: Callable[[], Any], session: bool = True) -> Any:
    """What ``work`` gives (JSON), in a process of ``uid`` with a new session keyring."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            if session:
                keyutils.join_session_keyring()
            said = json.dumps({"result": work()})
        except BaseException:
            said = json.dumps({"error": traceback.format_exc()})
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "error" not in answer, answer["error"]
    return answer["result"]


# Use cases (4).


def test_create_a_new_context(policy: KeyringPolicy, sec: SecurityObject) -> None:
    context = sec.lookup_ctx()
    # 5.3: the caller is back before the negotiation is done.
    assert context.state.value == "new" and context.cached and context.key
    assert context.refresh(10) is context
    assert context.state is State.UP_TO_DATE and context.handle and context.endtime > time.time() + 60
    # Key and context point to each other.
    named = keyutils.describe_key(context.key).decode()
    assert policy.description(context) in named
    for part in (f"{os.geteuid()}@", TARGET.obd_name, TARGET.client_uuid, f"{TARGET.nid:x}", ":1:"):
        assert part in policy.description(context)
    again = sec.lookup_ctx()
    assert again is context and context.references == 3
    sec.release_ctx(again)
    sec.release_ctx(context)


def test_create_a_new_context_timeout(site: Site) -> None:
    """The handler instantiates and then says nothing, as if it was killed."""
    program = site.stage.directory / "silent.py"
    Stage.write_front(CHECKOUT / "bench" / "bare.py", program)
    with (
        site.upcalls(program=program, arguments="%o %k") as upcalls,
        policy_of(upcalls, upcall_timeout=1.0) as policy,
        policy.create_sec(TARGET, "krb5i") as sec,
    ):
        context = sec.lookup_ctx()
        key = context.key
        with pytest.raises(LgssError) as caught:
            context.refresh(5)
        assert caught.value.errno == errno.ETIMEDOUT and str(key) in caught.value.reason
        assert context.state is State.ERROR and not context.cached
        # The key is out of the way: the next look-up makes another one.
        assert within(1, lambda: not exists(key))
        other = sec.lookup_ctx()
        assert other is not context and other.key != key
        sec.release_ctx(other)
        sec.release_ctx(context)


def test_request_key_itself_hangs(site: Site) -> None:
    """5.4: the helper never instantiates."""
    program = site.stage.directory / "hanging"
    program.write_text("#!/bin/sh\nexec sleep 3\n")
    program.chmod(0o755)
    with (
        site.upcalls(program=program, arguments="%o %k") as upcalls,
        policy_of(upcalls, request_timeout=0.5) as policy,
        policy.create_sec(TARGET, "krb5i") as sec,
    ):
        started = time.monotonic()
        with pytest.raises(LgssError, match=r"request_key\(2\) did not return within 0.5 s") as caught:
            sec.lookup_ctx()
        assert caught.value.errno == errno.ETIMEDOUT and time.monotonic() - started < 1.5
        assert within(5, lambda: policy.alive == 0)


def test_failure_of_the_upcall_is_told(site: Site, upcalls: Upcalls) -> None:
    def work() -> list[Any]:
        with policy_of(upcalls) as policy, policy.create_sec(TARGET, "krb5i") as sec:
            context = sec.lookup_ctx()
            try:
                context.refresh(10)
            except LgssError as error:
                said = [error.errno, error.major, context.state.value, error.kind]
            sec.release_ctx(context)
            return said

    uid = 61380
    site.realm.ccache_of(uid).unlink(missing_ok=True)
    assert in_user(uid, work) == [errno.ENOKEY, 7 << 16, "error", "upcall"]


def test_no_rule_at_all() -> None:
    with sptlrpc.create_policy("keyring", prefix="lgss-no-rule:") as policy:
        with policy.create_sec(TARGET, "krb5i") as sec:
            with pytest.raises(LgssError, match="Required key not available") as caught:
                sec.lookup_ctx()
            assert caught.value.errno in (errno.ENOKEY, errno.ENOENT)


def test_refresh_without_waiting(sec: SecurityObject) -> None:
    with sec.lookup_ctx() as context:
        first = context.refresh_later()
        assert first.result(10) is context
        assert context.refresh_later().done()


# Operations of a context (5.2.2).


def test_match_validate_die_and_display(policy: KeyringPolicy, sec: SecurityObject) -> None:
    with sec.lookup_ctx() as context:
        context.refresh(10)
        assert context.match(os.geteuid()) and not context.match(12345) and context.validate()
        shown = context.display()
        assert f"key {context.key}" in shown and "up to date, cached" in shown and "krb5p" in shown
        assert context.session is not None and context.session.context is not None
        assert context.session.context.ke.hex() not in shown
        assert shown in sec.display()
        key = context.key
        context.die()
        assert context.state is State.DEAD and not context.cached and not context.validate()
        with pytest.raises(LgssError) as caught:
            context.sign([b"x"])
        assert caught.value.errno == errno.EKEYREVOKED
        with sec.lookup_ctx() as other:
            assert other is not context and other.refresh(10).key
        assert "dead" in context.display()
    assert within(1, lambda: not exists(key))


def test_die_with_grace(sec: SecurityObject) -> None:
    with sec.lookup_ctx() as context:
        context.refresh(10)
        context.die(grace=1.5)
        assert not context.cached
        context.sign([b"still"])
        with sec.lookup_ctx() as other:
            assert other is not context
        time.sleep(2.6)
        assert not context.validate()
        with pytest.raises(LgssError):
            context.sign([b"over"])


def test_key_and_context_go_together(policy: KeyringPolicy, sec: SecurityObject) -> None:
    """5.1: destroying the one destroys the other, whichever comes first."""
    context = sec.lookup_ctx().refresh(10)
    key = context.key
    assert context.references == 2
    sec.uncache(context)
    assert within(1, lambda: not exists(key)) and policy.alive == 1
    context.sign([b"who holds it may use it still"])
    sec.release_ctx(context)
    assert policy.alive == 0
    with sec.lookup_ctx() as context:
        context.refresh(10)
        keyutils.invalidate(context.key)
        assert within(1, lambda: not context.validate()) and context.state is State.DEAD


# Operations of a security object (5.2.1).


def test_flush_ctx_cache(sec: SecurityObject) -> None:
    context = sec.lookup_ctx().refresh(10)
    assert sec.flush_ctx_cache(uid=4711) == 0
    assert sec.flush_ctx_cache() == 0 and context.cached  # in use
    assert sec.flush_ctx_cache(grace=60) == 1 and not context.cached and context.validate()
    sec.release_ctx(context)
    context = sec.lookup_ctx().refresh(10)
    assert sec.flush_ctx_cache(os.geteuid(), force=True) == 1 and context.state is State.DEAD
    sec.release_ctx(context)
    sec.release_ctx(sec.lookup_ctx().refresh(10))
    assert sec.flush_ctx_cache() == 1  # nobody uses it
    assert not sec.contexts


def test_destroyed_security_object_makes_no_more(policy: KeyringPolicy) -> None:
    sec = policy.create_sec(TARGET, "krb5i")
    context = sec.lookup_ctx().refresh(10)
    sec.destroy_sec()
    assert context.state is State.DEAD
    with pytest.raises(LgssError, match="destroyed"):
        sec.lookup_ctx()
    sec.release_ctx(context)


def test_expired_key_is_noticed_and_replaced(sec: SecurityObject) -> None:
    """5.6: by the next look-up, or by a sweep."""
    with sec.lookup_ctx() as context:
        context.refresh(10)
        # Root possesses it where its user keyring is in reach.
        reach(lambda: keyutils.set_timeout(context.key, 1))
        assert within(3, lambda: not context.validate())
        assert context.error is not None and context.error.errno in (errno.EKEYEXPIRED, errno.ENOKEY)
        with sec.lookup_ctx() as other:
            assert other is not context
            other.refresh(10)
            reach(lambda: keyutils.set_timeout(other.key, 1))
            time.sleep(2)
            assert sec.gc() == 1 and other.state is State.DEAD


def test_periodic_sweep(policy: KeyringPolicy) -> None:
    with policy.create_sec(TARGET, "krb5i") as sec:
        sec.sweep_every(0.1)
        context = sec.lookup_ctx().refresh(10)
        reach(lambda: keyutils.invalidate(context.key))
        assert within(3, lambda: context.state is State.DEAD and not sec.contexts)
        sec.release_ctx(context)


def reach(work: Callable[[], object]) -> None:
    """Do something to keys in the user keyring, from a thread that has it in reach."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            keyutils.link(keyutils.KEY_SPEC_USER_KEYRING, keyutils.KEY_SPEC_THREAD_KEYRING)
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures, failures


def test_revoked_key_does_not_block_its_name(sec: SecurityObject) -> None:
    """It answers EKEYREVOKED without an upcall as long as it is linked (docs/protocol.md 10)."""
    with sec.lookup_ctx() as context:
        context.refresh(10)
        reach(lambda: keyutils.revoke(context.key))
        with sec.lookup_ctx() as other:
            other.refresh(10)
            assert other.key != context.key and context.state is State.DEAD


def test_cleanup_never_hits_a_successor(policy: KeyringPolicy, upcalls: Upcalls) -> None:
    """5.8: keyctl_unlink goes by name; here another policy has made the next key of it."""
    with policy.create_sec(TARGET, "krb5i") as sec, policy_of(upcalls) as others:
        context = sec.lookup_ctx().refresh(10)
        assert context.keyrings == (keyctl.get_keyring_id(keyutils.KEY_SPEC_USER_KEYRING),)
        reach(lambda: keyutils.unlink(context.key, keyutils.KEY_SPEC_USER_KEYRING))
        with others.create_sec(TARGET, "krb5i") as second, second.lookup_ctx() as successor:
            successor.refresh(10)
            assert successor.key != context.key
            context.die()
            sec.release_ctx(context)
            time.sleep(0.2)
            assert exists(successor.key) and successor.validate()
            ring = keyutils.read_key(successor.keyrings[0])
            assert successor.key.to_bytes(4, sys.byteorder) in [
                ring[i : i + 4] for i in range(0, len(ring), 4)
            ]


# Whose keys are whose (5.7).


def keyrings_of_this_process() -> list[Any]:
    found: list[Any] = []
    for special in (-1, -2, -3):
        try:
            ring = keyctl.get_keyring_id(special)
            found.append((ring, keyutils.read_key(ring).hex()))
        except OSError as error:
            found.append(error.errno)
    return found


def lookup_in(upcalls: Upcalls) -> dict[str, Any]:
    """Look up once; the key's serial and whether this process's keyrings were left alone."""
    before = keyrings_of_this_process()
    with policy_of(upcalls) as policy:
        sec = policy.create_sec(TARGET, "krb5i")
        context = sec.lookup_ctx().refresh(10)
        # Not destroyed: the next process is to find it.
        return {"key": context.key, "same": keyrings_of_this_process() == before, "rings": before}


@pytest.mark.parametrize("uid", [0, USER_UID])
def test_all_sessions_of_a_user_share_one_key(site: Site, upcalls: Upcalls, uid: int) -> None:
    if uid:
        site.kinit(uid)
    first = in_user(uid, lambda: lookup_in(upcalls))
    second = in_user(uid, lambda: lookup_in(upcalls))
    assert first["rings"][2] != second["rings"][2], "two sessions"
    assert first["key"] == second["key"]
    assert first["same"] and second["same"]
    assert len(upcalls.log("LGSS_STEP=updated")) and sum(
        e.get("LGSS_STEP") == "updated" for e in upcalls.log()
    ) == 1  # fmt: skip

    def clean() -> None:
        reach(lambda: keyutils.invalidate(first["key"]))

    in_user(uid, clean)


@pytest.mark.parametrize("root_flags", ["r", ""])
@pytest.mark.parametrize("revoked", [False, True])
def test_keys_that_another_user_has_planted(
    site: Site, upcalls: Upcalls, root_flags: str, revoked: bool
) -> None:
    """After su(1) root's session keyring is often the user's, and full of what he likes."""
    user = 61381

    def work() -> list[Any]:
        with policy_of(upcalls) as policy:
            with policy.create_sec(TARGET, "krb5i", root_flags=root_flags) as sec:
                name = policy.description(Context(sec, 0))
                os.seteuid(user)
                planted = keyutils.add_key(name.encode(), b"\0" * 100, keyutils.KEY_SPEC_SESSION_KEYRING)
                if revoked:
                    keyutils.revoke(planted)
                os.seteuid(0)
                try:
                    context = sec.lookup_ctx()
                except LgssError as error:
                    ring = keyrings.members(keyrings.serial_of(keyrings.USER))
                    return [error.errno, planted in ring, error.reason]
                try:
                    context.refresh(10)
                except LgssError as error:
                    return [error.errno, False, error.reason]
                finally:
                    sec.release_ctx(context)
                return [0, context.key == planted, policy.description(context)]

    number, harmed, words = in_user(0, work)
    assert not harmed
    if root_flags:
        assert number == 0
    elif revoked:
        assert number == errno.ENOKEY  # from the upcall: root has no ticket of its own
    else:
        assert number == errno.EACCES and f"uid {user}'s" in words


@pytest.mark.parametrize("session_cache", [None, "nrl"])
def test_session_with_credentials_of_its_own(site: Site, session_cache: str | None) -> None:
    """3.2, NRL: its context is for this session alone."""
    config = site.directory / "nrl.conf"
    lines = Path(site.realm.krb5_conf).read_text().splitlines()
    lines = [line for line in lines if "default_ccache_name" not in line]
    at = lines.index("[libdefaults]") + 1
    config.write_text("\n".join([*lines[:at], "  default_ccache_name = KEYRING:session:nrl", *lines[at:]]))
    config.chmod(0o644)
    keytab = site.directory / "nrl.keytab"
    keytab.write_bytes(site.population.user_keytab.read_bytes())
    os.chown(keytab, USER_UID, USER_UID)
    kinit = ["kinit", "-k", "-t", str(keytab), "alice"]

    with site.upcalls({"krb5": {"config": str(config)}}) as upcalls:

        def work() -> list[Any]:
            subprocess.run(kinit, env={**os.environ, "KRB5_CONFIG": str(config)}, check=True)
            policy = policy_of(upcalls, session_cache=session_cache)
            sec = policy.create_sec(TARGET, "krb5i")
            context = sec.lookup_ctx().refresh(10)
            session = keyctl.get_keyring_id(keyutils.KEY_SPEC_SESSION_KEYRING)
            user_ring = keyutils.read_key(keyctl.get_keyring_id(keyutils.KEY_SPEC_USER_KEYRING)).hex()
            return [context.key, context.domain == session, context.keyrings == (session,), user_ring]

        def without() -> list[Any]:
            policy = policy_of(upcalls, session_cache=session_cache)
            sec = policy.create_sec(TARGET, "krb5i")
            context = sec.lookup_ctx()
            try:
                context.refresh(10)
            except LgssError as error:
                time.sleep(0.5)  # the thread takes the key away
                return [context.domain, error.errno]
            return [context.domain, 0]

        one, two = in_user(USER_UID, work), in_user(USER_UID, work)
        assert one[0] != two[0]
        for key, own_domain, own_ring, user_ring in (one, two):
            assert own_domain and own_ring
            assert key.to_bytes(4, sys.byteorder).hex() not in user_ring
        assert in_user(USER_UID, without) == [0, errno.ENOKEY]


def test_machine_context_of_a_session_with_credentials(upcalls: Upcalls) -> None:
    """They are not what it is made with: all of root shares it (5.7)."""

    def domains() -> list[int]:
        subprocess.run(["keyctl", "newring", "_krb_anything", "@s"], check=True, capture_output=True)
        with policy_of(upcalls) as policy:
            machine = policy.create_sec(TARGET, "krb5i")
            own = policy.create_sec(TARGET, "krb5i", root_flags="")
            names = {policy.description(Context(each, 0)) for each in (machine, own)}
            return [policy.domain(machine, 0), policy.domain(machine, 5), policy.domain(own, 0), len(names)]

    machine, other, own, names = in_user(0, domains)
    assert machine == other == 0 and own and names == 2


# Messages with a peer in another process.


@pytest.mark.parametrize("flavor", ["krb5n", "krb5a", "krb5i", "krb5p"])
def test_signed_messages(talking: KeyringPolicy, peer: Peer, flavor: str) -> None:
    with talking.create_sec(TARGET, flavor) as sec, sec.lookup_ctx() as context:
        context.refresh(10)
        pieces = [b"header", b"a message", os.urandom(1000)]
        request = sec.alloc_reqbuf(1015, context)
        sec.enlarge_reqbuf(request, 2000)
        token = context.sign(pieces)
        assert request.token_size >= len(token) and bool(token) == (flavor != "krb5n")
        assert request.finish(token)[2000:] == token
        sec.free_reqbuf(request)
        for _ in range(3):
            head, (*reply, token) = peer.ask(context, {"op": "sign"}, *pieces, context.sign(pieces))
            assert "error" not in head and reply == [piece[::-1] for piece in pieces]
            context.verify(reply, token)


def test_sealed_and_bulk_messages(talking: KeyringPolicy, peer: Peer) -> None:
    with talking.create_sec(TARGET, "krb5p") as sec, sec.lookup_ctx() as context:
        context.refresh(10)
        for length in (0, 1, 16, 1000, 1 << 20):
            message = os.urandom(length)
            sealed = context.seal(b"gss", message)
            buffer = sec.alloc_repbuf(length, context)
            assert 0 <= length + buffer.token_size - len(sealed) < 16
            sec.free_repbuf(buffer)
            head, (header, token) = peer.ask(context, {"op": "seal", "length": length}, b"gss", sealed)
            assert context.unseal(header, token, head["length"]) == message[::-1]
        pages = [os.urandom(4096), os.urandom(4096), os.urandom(123)]
        token, texts = context.wrap_bulk(pages)
        lengths = [len(page) for page in pages]
        head, (token, *texts) = peer.ask(context, {"op": "bulk", "lengths": lengths}, token, *texts)
        assert context.unwrap_bulk(token, texts, head["lengths"]) == [page[::-1] for page in pages]


def test_peer_refuses_bad_tokens(talking: KeyringPolicy, peer: Peer) -> None:
    with talking.create_sec(TARGET, "krb5i") as sec, sec.lookup_ctx() as context:
        context.refresh(10)
        pieces = [b"header", b"message"]
        token = context.sign(pieces)

        def refused(*blobs: bytes) -> int:
            return int(peer.ask(context, {"op": "sign"}, *blobs)[0]["error"])

        assert refused(*pieces, token[:-1] + bytes([token[-1] ^ 1])) == GSS_S_BAD_MIC
        assert refused(*pieces, token[:-1]) == GSS_S_DEFECTIVE_TOKEN
        assert refused(b"header", b"massage", token) == GSS_S_BAD_MIC
        assert "error" not in peer.ask(context, {"op": "sign"}, *pieces, token)[0]
        assert refused(*pieces, token) == GSS_S_DUPLICATE_TOKEN
        # No other name for the context, with a replay window of its own.
        with peer.connect() as connection:
            for handle, flavor in ((context.handle.hex()[:-1], "krb5i"), (context.handle.hex(), "krb5a")):
                server.send(connection, {"handle": handle, "flavor": flavor, "op": "sign"}, *pieces, token)
                assert "error" in server.receive(connection)[0]


def test_server_calls_back_on_a_reverse_context(talking: KeyringPolicy, peer: Peer) -> None:
    with talking.create_sec(TARGET, "krb5i") as sec, sec.lookup_ctx() as context:
        context.refresh(10)
        pieces = [b"a", b"b"]
        peer.ask(context, {"op": "sign"}, *pieces, context.sign(pieces))
        assert context.session is not None
        back = context.session.reversed()
        with peer.connect() as connection:
            names = {"handle": context.handle.hex(), "flavor": "krb5i"}
            server.send(connection, {**names, "op": "callback"})
            _, (*called, token) = server.receive(connection)
            assert called == [b"call", b"back"]
            back.verify(called, token)
            with pytest.raises(LgssError):
                context.verify(called, token)  # the other direction
            answer = [b"yes"]
            server.send(connection, {}, *answer, back.sign(answer))
            assert server.receive(connection)[0] == {"verified": True}


def test_reverse_contexts_are_bound_to_no_key_and_grow_old(sec: SecurityObject) -> None:
    with sec.lookup_ctx() as context:
        context.refresh(10)
        assert context.session is not None
        end = int(time.time()) + 3600
        first = sec.install_rctx(context.session, b"one", end)
        second = sec.install_rctx(context.session, b"two", end)
        assert first.key == 0 and first.reverse and first.endtime <= time.time() + sptlrpc.REVERSE_GRACE
        newest = sec.reverse_ctx()
        assert newest is second and second.endtime == end
        newest.put()
        assert "reverse of handle" in sec.display()
        first.endtime = 0
        assert sec.gc() == 1 and first.state is State.DEAD
        first.put()
        second.put()


# All at once.


def test_32_threads_on_8_targets(site: Site, peer: Peer) -> None:
    """Look-ups, signatures, flushes and releases for 30 s: no wrong result, no leak."""
    with site.upcalls({"rpcsec_gss": {"port": peer.port}}) as upcalls, policy_of(upcalls) as policy:
        secs = [
            policy.create_sec(Target(LOOPBACK_NID, 1, f"lgss-MDT{n:04}", LOOPBACK_NID, "many", n), "krb5i")
            for n in range(8)
        ]
        before = (len(os.listdir("/proc/self/fd")), threading.active_count())
        end = time.monotonic() + float(os.environ.get("LGSS_STRESS_SECONDS", "30"))
        done = [0] * 32
        wrong: list[Any] = []

        def work(number: int) -> None:
            chance = random.Random(number)
            while time.monotonic() < end and not wrong:
                sec = chance.choice(secs)
                try:
                    with sec.lookup_ctx() as context:
                        try:
                            context.refresh(20)
                            token = context.sign([b"header", b"message"])
                        except LgssError as error:
                            # Somebody may flush it at any moment.
                            if error.errno != errno.EKEYREVOKED:
                                raise
                            continue
                        if chance.random() < 0.005:
                            pieces = [b"header", b"message"]
                            head, _ = peer.ask(context, {"op": "sign"}, *pieces, token)
                            # The window of 2048 passes by while this one is on its way.
                            if head.get("error", 0) not in (0, 4):
                                wrong.append(head)
                    if chance.random() < 0.002:
                        sec.flush_ctx_cache(force=chance.random() < 0.5, grace=0)
                    done[number] += 1
                except BaseException:
                    wrong.append(traceback.format_exc())
                    return

        threads = [threading.Thread(target=work, args=(n,)) for n in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, wrong[0]
        assert min(done) > 0
        for sec in secs:
            sec.destroy_sec()
        assert within(5, lambda: policy.alive == 0)
        assert within(5, lambda: not living(upcalls.tag))
        assert within(5, lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) <= before)
        upcalls_made = sum(e.get("LGSS_STEP") == "updated" for e in upcalls.log())
        print(f"{sum(done)} rounds, {upcalls_made} upcalls")


def test_no_keys_are_left_to_users() -> None:
    """Root does not see them; they would count against their quota."""

    def mine() -> list[str]:
        lines = Path("/proc/keys").read_text().splitlines()
        return [line for line in lines if f" lgss:{os.getppid()}." in line]

    def left() -> list[str]:
        found: list[str] = in_user(USER_UID, mine)
        return [line for line in found if "i" not in line.split()[1]]

    assert within(5, lambda: not left()), left()
