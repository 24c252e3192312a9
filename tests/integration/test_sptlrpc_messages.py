"""Messages with a peer in another process."""

from __future__ import annotations

import errno
import math
import os
import random
import threading
import time
import traceback
from typing import Any

import pytest

from lgss_keyring import sptlrpc
from lgss_keyring.formats.errors import GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN, GSS_S_DUPLICATE_TOKEN, LgssError
from lgss_keyring.sptlrpc import SecurityObject, State, Target
from lgss_keyring.sptlrpc.keyring import KeyringPolicy
from tests.support import server
from tests.support.site import LOOPBACK_NID, Site

from .library import TARGET, Peer, living, policy_of
from .waiting import within

pytestmark = pytest.mark.usefixtures("swept")


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
        first.end_by(0)
        assert sec.gc() == 1 and first.state is State.DEAD
        first.put()
        second.put()


def test_32_threads_on_8_targets(site: Site, peer: Peer) -> None:
    """Look-ups, signatures, flushes and releases, so many or for so long: no wrong result, no leak."""
    with site.upcalls({"rpcsec_gss": {"port": peer.port}}) as upcalls, policy_of(upcalls) as policy:
        secs = [
            policy.create_sec(Target(LOOPBACK_NID, 1, f"lgss-MDT{n:04}", LOOPBACK_NID, "many", n), "krb5i")
            for n in range(8)
        ]
        before = (len(os.listdir("/proc/self/fd")), threading.active_count())
        rounds = math.inf if "LGSS_STRESS_SECONDS" in os.environ else 60_000
        end = time.monotonic() + float(os.environ.get("LGSS_STRESS_SECONDS", "30"))
        done = [0] * 32
        wrong: list[Any] = []

        def work(number: int) -> None:
            chance = random.Random(number)
            # However many the others make, each thread makes one at least.
            while not done[number] or (sum(done) < rounds and time.monotonic() < end):
                if wrong:
                    return
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
