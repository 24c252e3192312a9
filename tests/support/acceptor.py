"""An RPCSEC_GSS acceptor that proves its contexts, for tests, demo and bench.

Speaks RFC 2203 version 1 over ONC RPC (RFC 5531) with record marking on TCP, for
initiators of any make: context creation, the null procedure with each service, and
destruction.  It shares no code with ``lgss_keyring.worker.channel``: a misreading of the
RFC in the one must not be repeated by the other.

It runs as a process of its own (``python -m tests.support.acceptor``), with a
thread for each connection: tests fork, and a process with threads had better not.

THIS IS A TEST TOOL: on request it writes the keys of its contexts to a file.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from pathlib import Path

import click
import gssapi.raw as gss

from lgss_keyring.worker import identity
from tests.support.acceptor_context import Context, protect, unprotect
from tests.support.acceptor_faults import FAULTS
from tests.support.onc_rpc import (
    AUTH_BADCRED,
    AUTH_BADVERF,
    AUTH_ERROR,
    AUTH_LIMIT,
    AUTH_NONE,
    AUTH_TOOWEAK,
    CALL,
    CONTINUE_INIT,
    DESTROY,
    GARBAGE_ARGS,
    GSS_S_COMPLETE,
    GSS_S_CONTINUE_NEEDED,
    GSS_S_FAILURE,
    INIT,
    MAXSEQ,
    MSG_DENIED,
    PROC_UNAVAIL,
    PROG_MISMATCH,
    PROG_UNAVAIL,
    REPLY,
    RPC_MISMATCH,
    RPCSEC_GSS,
    RPCSEC_GSS_CREDPROBLEM,
    RPCSEC_GSS_CTXPROBLEM,
    SUCCESS,
    Call,
    Decoder,
    Denied,
    NotAccepted,
    accepted,
    decode_credential,
    read_record,
    xdr,
)

HALF_OPEN_LIMIT = 256
HALF_OPEN_SECONDS = 60.0
IDLE_SECONDS = 120.0
DELAY_SECONDS = 2.0


class Acceptor:
    """The acceptor; :meth:`serve_forever` accepts connections.

    ``window`` is the sequence window offered; ``contexts_file`` gets a JSON line for
    each established context: handle, initiator, target, enctype, endtime and
    ``context``, the acceptor's side of the ctx of docs/protocol.md 7 in hex.
    """

    def __init__(
        self,
        listener: socket.socket,
        program: int,
        version: int,
        window: int = 128,
        contexts_file: Path | None = None,
        fault: str | None = None,
    ) -> None:
        self._listener = listener
        self._program = program
        self._version = version
        self._window = window
        self._contexts_file = contexts_file
        self._fault = fault
        self._calls = 0
        self._contexts: dict[bytes, Context] = {}
        self._lock = threading.Lock()
        # All service principals of the keytab: what a Lustre server has, too.
        self._credential = gss.acquire_cred(None, usage="accept").creds

    def serve_forever(self) -> None:
        """Accept connections until the process is ended."""
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(IDLE_SECONDS)
            try:
                while True:
                    record = read_record(connection)
                    if record is None:
                        return
                    reply = self.answer(record)
                    if self._fault == "delay":
                        time.sleep(DELAY_SECONDS)
                    if reply is not None:
                        connection.sendall(self._marked(reply))
            except (OSError, ValueError):
                return  # a record that is none: the stream cannot be trusted any more

    def _marked(self, reply: bytes) -> bytes:
        if self._fault == "one-byte-fragments":
            fragments = [struct.pack(">I", 1) + reply[i : i + 1] for i in range(len(reply))]
            return b"".join(fragments) + struct.pack(">I", 1 << 31)
        return struct.pack(">I", 1 << 31 | len(reply)) + reply

    def answer(self, record: bytes) -> bytes | None:
        """The reply to one record, or None where silence is due."""
        decoder = Decoder(record)
        try:
            xid = decoder.fixed(4)
            if decoder.unsigned() != CALL:
                return None
        except ValueError:
            return None
        if self._fault == "other-xid":
            xid = bytes(byte ^ 0x55 for byte in xid)
        try:
            return self._dispatch(xid, decoder)
        except Denied as denied:
            return xid + struct.pack(">IIII", REPLY, MSG_DENIED, AUTH_ERROR, denied.auth_stat)
        except NotAccepted as problem:
            return accepted(xid, AUTH_NONE, b"", problem.accept_stat, problem.rest)
        except ValueError:
            # RFC 5531, 9: what is behind the header could not be decoded.
            return accepted(xid, AUTH_NONE, b"", GARBAGE_ARGS)

    def _dispatch(self, xid: bytes, decoder: Decoder) -> bytes | None:
        if decoder.unsigned() != 2:
            return xid + struct.pack(">IIIII", REPLY, MSG_DENIED, RPC_MISMATCH, 2, 2)
        program, version, procedure = decoder.unsigned(), decoder.unsigned(), decoder.unsigned()
        flavor = decoder.unsigned()
        try:
            credential = decoder.variable(AUTH_LIMIT)
        except ValueError:
            raise Denied(AUTH_BADCRED) from None
        signed = decoder.data[: decoder.offset]
        verifier_flavor = decoder.unsigned()
        try:
            verifier = decoder.variable(AUTH_LIMIT)
        except ValueError:
            raise Denied(AUTH_BADVERF) from None
        if program != self._program:
            raise NotAccepted(PROG_UNAVAIL)
        if version != self._version:
            raise NotAccepted(PROG_MISMATCH, struct.pack(">II", self._version, self._version))
        if flavor == AUTH_NONE and procedure == 0:
            return accepted(xid, AUTH_NONE, b"", SUCCESS)  # a ping, as any service answers
        if flavor != RPCSEC_GSS:
            raise Denied(AUTH_TOOWEAK)
        call = decode_credential(
            credential, xid, procedure, verifier_flavor, verifier, signed, decoder.data[decoder.offset :]
        )
        self._calls += 1
        if self._fault == "drop-once" and self._calls == 1:
            return None
        if self._fault == "restart-always" or (self._fault == "restart-once" and self._calls == 1):
            raise Denied(RPCSEC_GSS_CREDPROBLEM)
        if call.gss_procedure in (INIT, CONTINUE_INIT):
            return self._create(call)
        return self._data(call)

    # Context creation: RFC 2203, 5.2.2 and 5.2.3.

    def _create(self, call: Call) -> bytes:
        if call.procedure != 0:
            raise NotAccepted(PROC_UNAVAIL)
        decoder = Decoder(call.arguments)
        token = decoder.variable()
        decoder.done()
        if self._fault == "gss-failure":
            return self._init_res(call, b"", GSS_S_FAILURE, 0, b"")
        handle, context = self._context_for(call)
        with context.lock:
            if context.established:
                raise Denied(RPCSEC_GSS_CREDPROBLEM)
            return self._advance(call, handle, context, token)

    def _advance(self, call: Call, handle: bytes, context: Context, token: bytes) -> bytes:
        if self._fault == "continue-forever":
            return self._init_res(call, handle, GSS_S_CONTINUE_NEEDED, 0, b"")
        try:
            result = gss.accept_sec_context(token, self._credential, context.gss)
        except gss.GSSError as error:
            with self._lock:
                self._contexts.pop(handle, None)
            error_token = getattr(error, "token", None) or b""
            major, minor = error.maj_code & 0xFFFFFFFF, error.min_code & 0xFFFFFFFF
            return self._init_res(call, b"", major, minor, error_token)
        context.gss = result.context
        if result.more_steps:
            return self._init_res(call, handle, GSS_S_CONTINUE_NEEDED, 0, result.token or b"")
        try:
            mic = gss.get_mic(context.gss, struct.pack(">I", self._window))
            context.prove(handle, self._contexts_file)
        except gss.GSSError as error:
            with self._lock:
                self._contexts.pop(handle, None)
            return self._init_res(call, b"", error.maj_code & 0xFFFFFFFF, error.min_code & 0xFFFFFFFF, b"")
        context.established = True
        return self._init_res(call, handle, GSS_S_COMPLETE, 0, result.token or b"", mic)

    def _context_for(self, call: Call) -> tuple[bytes, Context]:
        now = time.monotonic()
        with self._lock:
            half_open = 0
            for handle, context in list(self._contexts.items()):
                if context.established:
                    continue
                if now - context.begun > HALF_OPEN_SECONDS:
                    del self._contexts[handle]
                else:
                    half_open += 1
            if call.gss_procedure == INIT:
                if call.handle:
                    raise Denied(AUTH_BADCRED)
                if half_open >= HALF_OPEN_LIMIT:
                    raise Denied(RPCSEC_GSS_CTXPROBLEM)
                handle, context = os.urandom(8), Context(None)
                self._contexts[handle] = context
                return handle, context
            found = self._contexts.get(call.handle)
            if found is None or found.established:
                raise Denied(RPCSEC_GSS_CREDPROBLEM)
            return call.handle, found

    def _init_res(
        self, call: Call, handle: bytes, major: int, minor: int, token: bytes, mic: bytes | None = None
    ) -> bytes:
        window = self._window if major in (GSS_S_COMPLETE, GSS_S_CONTINUE_NEEDED) else 0
        flavor, verifier = (AUTH_NONE, b"") if mic is None else (RPCSEC_GSS, mic)
        if mic is not None:
            if self._fault == "bad-verifier":
                verifier = mic[:-1] + bytes([mic[-1] ^ 1])
            elif self._fault == "no-verifier":
                flavor, verifier = AUTH_NONE, b""
            elif self._fault == "wrong-window":
                window += 1
            elif self._fault == "no-handle":
                handle = b""
            elif self._fault == "bad-token":
                token = b"no token"
            elif self._fault == "huge-handle":
                handle = bytes(1 << 16)
        result = xdr(handle) + struct.pack(">III", major, minor, window) + xdr(token)
        if self._fault == "trailing-bytes":
            result += bytes(4)
        return accepted(call.xid, flavor, verifier, SUCCESS, result)

    # Data exchange and destruction: RFC 2203, 5.3 and 5.4.

    def _data(self, call: Call) -> bytes | None:
        with self._lock:
            context = self._contexts.get(call.handle)
        if context is None or not context.established or call.verifier_flavor != RPCSEC_GSS:
            raise Denied(RPCSEC_GSS_CREDPROBLEM)
        try:
            gss.verify_mic(context.gss, call.signed, call.verifier)
        except gss.GSSError:
            raise Denied(RPCSEC_GSS_CREDPROBLEM) from None
        if call.sequence >= MAXSEQ:
            raise Denied(RPCSEC_GSS_CTXPROBLEM)
        with self._lock:
            if not context.fresh(call.sequence, self._window):
                return None  # silently, as 5.3.3.1 wants
        try:
            verifier = gss.get_mic(context.gss, struct.pack(">I", call.sequence))
        except gss.GSSError:
            # RFC 2203, 5.3.3.4: the context is there, but cannot be used (any more).
            raise Denied(RPCSEC_GSS_CTXPROBLEM) from None
        if call.procedure != 0:
            return accepted(call.xid, RPCSEC_GSS, verifier, PROC_UNAVAIL)
        try:
            # Linux's kernel sends a void, unwrapped, to destroy a context, whatever the
            # service (net/sunrpc/auth_gss: "the spec seems a little ambiguous here");
            # libtirpc wraps it.  Both must be understood.
            bare = call.gss_procedure == DESTROY and not call.arguments
            arguments = b"" if bare else unprotect(context.gss, call)
            Decoder(arguments).done()
        except (ValueError, gss.GSSError):
            return accepted(call.xid, RPCSEC_GSS, verifier, GARBAGE_ARGS)
        if call.gss_procedure == DESTROY:
            with self._lock:
                self._contexts.pop(call.handle, None)
            return accepted(call.xid, RPCSEC_GSS, verifier, SUCCESS)
        try:
            body = protect(context.gss, call, b"")
        except gss.GSSError:
            raise Denied(RPCSEC_GSS_CTXPROBLEM) from None
        return accepted(call.xid, RPCSEC_GSS, verifier, SUCCESS, body)


@click.command()
@click.option("--keytab", required=True, help="The keytab with the service principals.")
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="ADDRESS:PORT; port 0: a free one.")
@click.option("--program", default=0x20004C47, show_default=True, help="RPC program number.")
@click.option("--version", default=1, show_default=True, help="RPC program version.")
@click.option("--window", default=128, show_default=True, help="Sequence window to offer.")
@click.option(
    "--contexts", type=click.Path(path_type=Path), help="Write contexts WITH THEIR KEYS to it (0600)."
)
@click.option("--processes", default=1, help="How many processes accept.")
@click.option("--fault", type=click.Choice(sorted(FAULTS)), help="Do this wrong, for tests of initiators.")
def main(
    keytab: str,
    listen: str,
    program: int,
    version: int,
    window: int,
    contexts: Path | None,
    processes: int,
    fault: str | None,
) -> None:
    """Accept RPCSEC_GSS contexts on TCP; prints `listening on ADDRESS PORT` when it is ready."""
    address, _, port = listen.rpartition(":")
    os.environ["KRB5_KTNAME"] = keytab
    # Many initiators in the same second, and no state that outlives us.
    os.environ["KRB5RCACHENAME"] = "none:"
    listener = socket.create_server((address, int(port)), backlog=1024)
    acceptor = Acceptor(listener, program, version, window, contexts, fault)
    click.echo(f"listening on {address} {listener.getsockname()[1]}")
    parent = os.getpid()
    if any(os.fork() == 0 for _ in range(processes - 1)):
        identity.die_with(parent)
    acceptor.serve_forever()


if __name__ == "__main__":
    main()
