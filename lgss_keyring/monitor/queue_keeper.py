"""The queue keeper: the one process in which all upcalls of one uid wait for their turn.

The first child that finds no slot starts it.  It holds the keys of the requests by a
keyring (:mod:`.hand_over`), gives each request a slot in the order of their arrival, in a
process of its own, and answers those whose time is over.  It does nothing that can block,
and ends when nothing has waited for a second.

Its parent watches it: if the keeper is killed, its parent, which has the same keyring,
answers all the keys in there.  What is imported here is imported once for all the
requests, and its memory is shared by their processes.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque

from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.formats.outcome import Answer
from lgss_keyring.front import answer as front_answer
from lgss_keyring.front import oom, refusal, witness, word
from lgss_keyring.monitor import hand_over, key_answer, limits, priority, slots, upcall
from lgss_keyring.monitor.hand_over import Request
from lgss_keyring.system import keyrings, keys
from lgss_keyring.system.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

PERMISSIONS = 0x3F070000
"""Of the keyring: its possessors may do everything, root's other processes view, read and
write it (docs/protocol.md 10)."""
BACKLOG = 1024
CONNECTIONS_LIMIT = 128
ANSWER_PATIENCE = 0.2
"""Seconds that the answer to one key may take, so that it does not hold up the others."""


def run(uid: str, lock: int) -> None:
    """Become the queue keeper of ``uid``; does not return.  ``lock`` is the descriptor of the
    lock file of the uid's only keeper."""
    upcall.daemonize([lock])
    oom.set_score(oom.SPARED)
    keyrings.join_session()
    queue = keyrings.serial_of(keyrings.SESSION)
    keyrings.set_permissions(queue, PERMISSIONS)
    keeper = os.fork()
    try:
        if keeper:
            os.close(lock)
            _watch(keeper, uid, queue)
        else:
            QueueKeeper(uid, lock, queue).run()
        os._exit(0)
    finally:
        os._exit(1)


def _watch(keeper: int, uid: str, queue: int) -> None:
    """Wait for the keeper, and answer what it leaves if it was killed, or had a defect."""
    _, status = os.waitpid(keeper, 0)
    if not status:
        return
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "an error of its own"
    answered = 0
    for keyring in keyrings.members(queue):
        try:
            (key,) = keyrings.members(keyring)
            front_answer.update(key, front_answer.failure(errno.EIO), time.monotonic() + ANSWER_PATIENCE)
            answered += 1
            if keyrings.describe(key).startswith(b"user;"):
                keys.set_timeout(key, front_answer.FAILURE_LIFE)
        except (OSError, ValueError, LgssError):
            pass  # nobody waits for it any more
        _forget(keyring, queue)
    log = Log(started=time.monotonic())
    log.bind(requestor=uid)
    log.event(
        "warning",
        f"the queue keeper of uid {uid} was ended by {how}; "
        f"{answered} waiting keys were answered with EIO; see the kernel's log",
        error=Kind.KILLED,
        errno="EIO",
    )


def _forget(keyring: int, queue: int) -> None:
    try:
        keyrings.unlink(keyring, queue)
    except LgssError:
        pass  # it is not there any more


class QueueKeeper:
    """The requests that wait, and the connections that bring more."""

    def __init__(self, uid: str, lock: int, queue: int) -> None:
        """``lock``: the descriptor of the lock of the only keeper; ``queue``: the serial of the
        keyring that holds the requests' keys.  Raises OSError."""
        self._uid = uid
        self._queue = queue
        self._waiting: deque[Request] = deque()
        self._connections: dict[int, tuple[socket.socket, float]] = {}
        path = hand_over.path(uid)
        try:
            os.unlink(path)  # of a keeper that was killed
        except FileNotFoundError:
            pass
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)
        self._lock = lock
        # Only now, because the sooner it listens, the fewer processes wait for it. All that it starts
        # shares one autogroup, and so no more than one process's part of the processors.
        priority.lower_session(priority.QUEUE_NICE)

    def run(self) -> None:
        """Serve until nothing waits any more."""
        idle_since = time.monotonic()
        while True:
            pause = limits.QUEUE_PAUSE if self._waiting else limits.QUEUE_LINGERS
            for descriptor, _ in self._poll.poll(pause * 1000):
                if descriptor == self._listener.fileno():
                    self._accept()
                else:
                    self._read(descriptor)
            self._reap()
            self._answer_late()
            self._start()
            now = time.monotonic()
            for descriptor, (_, since) in list(self._connections.items()):
                if now > since + limits.HAND_OVER_SECONDS:
                    self._drop(descriptor)
            if self._waiting or self._connections:
                idle_since = now
            elif now >= idle_since + limits.QUEUE_LINGERS:
                # A child that has connected and was not accepted finds its connection closed. It
                # waits in its own process, or starts the next keeper.
                os.unlink(hand_over.path(self._uid))
                return

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has been closed again, or there are no more descriptors
        if len(self._connections) >= CONNECTIONS_LIMIT or len(self._waiting) >= limits.QUEUE_LENGTH:
            connection.close()
            return
        connection.setblocking(False)
        self._connections[connection.fileno()] = (connection, time.monotonic())
        self._poll.register(connection, select.POLLIN)
        try:
            if hand_over.is_root(connection):
                connection.send(b"%d" % self._queue)
                return
        except OSError:
            pass  # gone again
        self._drop(connection.fileno())

    def _read(self, descriptor: int) -> None:
        connection, _ = self._connections[descriptor]
        try:
            request = hand_over.unpack(connection.recv(hand_over.MESSAGE_LIMIT + 1))
            if request.call.requestor == self._uid:
                connection.send(hand_over.TAKEN)
                self._waiting.append(request)
        except (OSError, ValueError):
            pass  # it was closed, or the message is not one of ours: nothing is acknowledged
        self._drop(descriptor)

    def _drop(self, descriptor: int) -> None:
        connection, _ = self._connections.pop(descriptor)
        self._poll.unregister(descriptor)
        connection.close()

    @staticmethod
    def _reap() -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def _start(self) -> None:
        """Serve those whose turn it is."""
        while self._waiting:
            try:
                number, slot = slots.take(self._uid, limits.UPCALLS_AT_WORK)
                if slot < 0:
                    return
                try:
                    pid = os.fork()
                    if pid == 0:
                        self._attend(self._waiting[0], number, slot)
                finally:
                    os.close(slot)
            except OSError:
                return  # no process or descriptor to be had now
            self._waiting.popleft()

    def _attend(self, request: Request, number: int, slot: int) -> NoReturn:
        """Serve ``request`` in this process; does not return."""
        try:
            self._leave()
            priority.lower_workers(priority.of_slot(number))
            # A new session keyring, without the other requests' keys. Between the two sessions the
            # thread keyring keeps the possession of this key.
            keyrings.link(request.key, keyrings.THREAD)
            keyrings.join_session()
            keyrings.link(request.key, keyrings.SESSION)
            _forget(request.keyring, self._queue)
            server = os.fork()
            if server:
                os.close(slot)  # the server holds it
                witness.watch(server, request.key, request.call, upcall.log_refusal)
            else:
                front = word.Child(-1, -1)
                upcall.run(request.key, request.call, front, request.started, request.forked, slot)
        except BaseException as error:
            refusal.last_resort(request.key, request.call, error)
        finally:
            os._exit(1)

    def _leave(self) -> None:
        """Close, in a new process, what only the keeper needs."""
        self._listener.close()
        os.close(self._lock)
        for connection, _ in self._connections.values():
            connection.close()

    def _answer_late(self) -> None:
        """Answer the requests that have waited for all their time, in a process of their own."""
        now = time.monotonic()
        late = [each for each in self._waiting if now > hand_over.turn_ends(each.call, each.started)]
        if not late:
            return
        try:
            pid = os.fork()
        except OSError:
            return  # it is tried again at the next look
        if pid:
            gone = {id(each) for each in late}
            self._waiting = deque(each for each in self._waiting if id(each) not in gone)
            return
        try:
            self._leave()
            for request in late:
                seconds = f"{time.monotonic() - request.started:.0f}"
                log = upcall.open_log(request.call, request.started)[0]
                log.bind(key=request.key)
                failure = upcall.no_turn(
                    errno.ETIMEDOUT, f"no turn within {seconds} s: {limits.UPCALLS_AT_WORK} upcalls work"
                )
                deadline = time.monotonic() + ANSWER_PATIENCE
                key_answer.give(request.key, request.call.key_type, Answer.of_failure(failure), deadline, log)
                _forget(request.keyring, self._queue)
        finally:
            os._exit(0)
