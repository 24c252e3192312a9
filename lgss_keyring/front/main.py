"""The front: what is done while a process waits in request_key(2).

That process goes on when this one has exited.  So the front does only what has to be done
before: it takes the authority, links the keyrings that hold the requestor's credentials, forks,
instantiates.  Its child does the rest (:mod:`lgss_keyring.monitor.upcall`).  A call that is not
for us is answered by :mod:`.refusal`.
"""

from __future__ import annotations

import os
import time

from lgss_keyring.front import arguments, keyctl, word

MEMBERS_LIMIT = 1000
"""How many members a keyring may have to be looked at; an ordinary user's quota is 200 keys."""
COLLECTION = b"_krb_"
"""What libkrb5 puts before the name of a collection of KEYRING caches."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lgss_keyring.front import lgssd, witness

    Serve = Callable[[int, arguments.Call, word.Child], None]
    """Serves the upcall for a key; takes its serial, the call, and the child's ends of the pipes
    to the front.  The key is instantiated already, unless the front waits for a word."""


def run(given: Sequence[str], serve: Serve, log_refusal: arguments.LogRefusal) -> int:
    """Do the front's work for the arguments ``given``; returns the exit status."""
    started = time.monotonic()
    call = arguments.Call(given)
    try:
        if call.wrong():
            raise ValueError
        if "instantiated" in call.options:
            _take_over(call, serve, log_refusal)
        if "killed" in call.options:
            from lgss_keyring.front import oom, witness

            oom.set_score(oom.ORDINARY)  # only the line in the log is missing yet
            log_refusal(call.serial, call, witness.reason_for(*call.killed), call.killed[0])
            return 0
        # The alarm bounds the caller's wait even if somebody else holds a keyring lock.
        # 5 s were too short: of 200 upcalls at once on a slow machine 13 were lost.
        keyctl.alarm(call.timeout)
        return _instantiate(call, started, serve, log_refusal)
    except (ValueError, OSError, word.NoWordError) as error:
        from lgss_keyring.front import refusal

        return refusal.refuse(given, call, error, log_refusal)


def _instantiate(
    call: arguments.Call, started: float, serve: Serve, log_refusal: arguments.LogRefusal
) -> int:
    key = call.serial
    keyctl.assume_authority(key)
    if call.key_type == "user":
        from lgss_keyring.front import requestor_place

        requestor_place.hold_to_it(key, call)
    call.has_keyring = call.brings_credentials and _link_credentials(call.keyrings)
    since = 0.0
    # Credentials in a session keyring are out of a shared worker's reach.
    if not call.has_keyring and os.path.exists(call.lgssd):
        from lgss_keyring.front import lgssd

        connection = lgssd.Connection.connect(call, started)
        if connection is not None:
            status = _ask_lgssd(key, call, started, connection, serve, log_refusal)
            if status >= 0:
                return status
            since = started  # the word that did not come has taken some of the upcall's time
    return _start(key, call, since, serve, log_refusal)


def _start(
    key: int, call: arguments.Call, since: float, serve: Serve, log_refusal: arguments.LogRefusal
) -> int:
    """Start the upcall without lgssd, unless a note says that it is known to fail; returns the exit
    status.  ``since``: when its time began, of time.monotonic(), or 0 for now."""
    # The module that reads notes is loaded only if there is one.
    if not call.has_keyring and os.path.exists(call.failure_note):
        from lgss_keyring.front import known_failure

        number, seconds = known_failure.look(call.failure_note, call.callout)
        if number:
            keyctl.reject(key, seconds, number)
            return 1
    queue = f"{arguments.SLOTS}/{call.requestor}"
    if not call.is_machine and os.path.exists(f"{queue}.queue"):
        from lgss_keyring.front import pace

        pace.wait(f"{queue}.pace")
    instantiated_reader, instantiated_writer = os.pipe()
    word_reader, word_writer = os.pipe() if call.is_machine else (-1, -1)
    if os.fork() == 0:
        os.close(instantiated_writer)
        if word_reader >= 0:
            os.close(word_reader)
        child = word.Child(word_writer, instantiated_reader)
        child.started = since
        _child(key, call, child, serve, log_refusal)
    os.close(instantiated_reader)
    if word_reader >= 0:
        os.close(word_writer)
        number, seconds = word.hear(word_reader)
        if number:
            keyctl.reject(key, seconds, number)
            return 1
    _let_go(key, call, instantiated_writer)
    return 0


def _ask_lgssd(
    key: int,
    call: arguments.Call,
    started: float,
    connection: lgssd.Connection,
    serve: Serve,
    log_refusal: arguments.LogRefusal,
) -> int:
    """Do what lgssd says about ``key``; returns the exit status, or -1 if the front has to begin
    anew without lgssd."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        child = word.Child(-1, reader)
        child.started = started
        _child(key, call, child, serve, log_refusal, connection)
    os.close(reader)
    is_served, number, seconds = connection.word()
    if number:
        keyctl.reject(key, seconds, number)
        connection.done(0)
        _quit(writer)
        return 1
    if not is_served:
        connection.give_up()
        if call.is_machine:
            _quit(writer)
            return -1
    _let_go(key, call, writer)
    return 0


def _quit(writer: int) -> None:
    """Let the child that reads from ``writer`` end; it has nothing to do."""
    try:
        os.write(writer, word.QUIT)
    except OSError:
        pass  # it was killed
    os.close(writer)


def _let_go(key: int, call: arguments.Call, writer: int) -> None:
    """Instantiate ``key``, and tell the child so over ``writer``."""
    if call.key_type == "user":
        # One second more: the kernel counts whole seconds, and our answer must come before.
        keyctl.set_timeout(key, call.timeout + 1)
        # The link makes the child the key's possessor, even when it has become the user.
        own = keyctl.get_keyring_id(keyctl.KEY_SPEC_SESSION_KEYRING)
        keyctl.instantiate(key, b"\0", own)
    else:
        # No payload, and NEVER our own keyring as destination: this type links itself
        # there, and naming it hangs us in the kernel (docs/protocol.md 7).
        keyctl.instantiate(key, None, 0)
    os.write(writer, word.INSTANTIATED)


def _link_credentials(keyrings: Sequence[str]) -> bool:
    """Link those of the requestor's ``keyrings`` that hold credentials into our session keyring;
    returns whether there are any.

    With such a link the child can still use a credential that is only in that keyring when the
    authority is gone (docs/protocol.md 10).  To link a keyring, the kernel takes a lock that it
    has only one of, and a user with a dense graph of keyrings can hold it for a second at a
    time.  So nothing is linked without need: only a keyring that directly holds a collection
    of credentials, which a bounded look at its members shows.  A search through the graph
    would be as slow as its owner likes.
    """
    found = False
    for each in keyrings:
        try:
            keyring = int(each)
            if keyring > 0 and _holds_collection(keyring):
                keyctl.link(keyring, keyctl.KEY_SPEC_SESSION_KEYRING)
                found = True
        except (OSError, ValueError):
            pass  # a requestor may have no such keyring, or a revoked one
    return found


def _holds_collection(keyring: int) -> bool:
    for member in keyctl.members(keyring, MEMBERS_LIMIT):
        try:
            if COLLECTION in keyctl.describe(member):
                return True
        except OSError:
            pass  # gone, or not ours to look at
    return False


def _take_over(call: arguments.Call, serve: Serve, log_refusal: arguments.LogRefusal) -> None:
    """Serve an upcall whose front was the native one; does not return.

    That front's child has become this process (execve(2)), and its parent is the witness.
    """
    from lgss_keyring.front import oom

    # The native front's processes are never killed for want of memory.  This one is far larger, so it may
    # be, but after others.
    oom.set_score(oom.SPARED)
    pipe, started = call.instantiated
    front = word.Child(-1, pipe)
    front.witness = os.getppid()
    now = time.monotonic()
    front.started = min(max(started / 1000, now - call.timeout), now)
    # Without it a rule that has this option by mistake would make its caller wait for ever.
    keyctl.alarm(call.timeout)
    _child(call.serial, call, front, serve, log_refusal)


def _child(
    key: int,
    call: arguments.Call,
    front: word.Child,
    serve: Serve,
    log_refusal: arguments.LogRefusal,
    connection: lgssd.Connection | None = None,
) -> None:
    """Become the upcall's witness, whose child serves it; does not return.  If there is a witness
    already, serve it here.  ``connection``: to lgssd, if that serves the upcall."""
    try:
        _drop_authority()
        # With the default policy this process, and its child when it is woken, preempts the
        # front just before that exits. The caller was back 0.9 ms later then.
        _schedule(os.SCHED_BATCH)
        writes = None
        if not front.witness:
            from lgss_keyring.front import witness

            witness.detach()
            front.witness = os.getpid()
            if connection is not None:
                writes = witness.Writes()
            server = os.fork()
            if server:
                front.close()
                if connection is not None:
                    connection.close()
                witness.watch(server, key, call, log_refusal, writes)
                return
        _serve(key, call, front, serve, log_refusal, connection, writes)
    except BaseException as error:  # a damaged installation must not leave the caller waiting
        from lgss_keyring.front import answer, refusal

        if front.is_due:
            number, _ = refusal.cause(error)
            front.reject(number, answer.FAILURE_LIFE)
        refusal.last_resort(key, call, error)
    finally:
        os._exit(0)


def _serve(
    key: int,
    call: arguments.Call,
    front: word.Child,
    serve: Serve,
    log_refusal: arguments.LogRefusal,
    connection: lgssd.Connection | None,
    writes: witness.Writes | None,
) -> None:
    """Serve the upcall.  If the front waits for no word, wait first until the key is instantiated.
    With a ``connection`` lgssd serves it, and this process only if lgssd does not; ``writes`` lets
    the witness watch."""
    is_instantiated = False
    if not front.is_due:
        is_instantiated = front.wait()
        if not is_instantiated:  # the front was killed, or has refused
            from lgss_keyring.front import refusal

            if front.is_over or not refusal.instantiated(key, call, log_refusal):
                return
        keyctl.alarm(0)
    _schedule(os.SCHED_OTHER)
    if connection is not None and writes is not None:
        if is_instantiated and connection.serve(key, writes.watch):
            return
        connection.close()
        writes.close()
    serve(key, call, front)


def _drop_authority() -> None:
    """Drop the authority over the key.  The front needs it, its child does not.

    The kernel revokes it at instantiation.  Lustre may request a key of its own in the context of
    a process that writes to init_channel; with the assumed authority that would fail with
    EKEYREVOKED, and so would our RPC (docs/protocol.md 6).  And a worker of the machine, which
    looks for its credential before the instantiation, must not search the requestor's keyrings.
    """
    try:
        keyctl.assume_authority(0)
    except OSError:
        pass  # there was none to drop


def _schedule(policy: int) -> None:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:
        pass  # a container may forbid it; only the caller's 0.9 ms depend on it
