"""The connections of lgssd, and who is at their other ends.

*Nothing that a peer sends is ever dropped by the server's process.*  A record may carry
descriptors, and to drop the last reference of one can wait for as long as its owner likes
(SO_LINGER, FUSE).  Kernels from 6.16 on refuse them for us.  With older ones each record is looked
at without taking it (MSG_PEEK), and what a peer leaves behind is closed by a process that exits,
because an exiting process does not linger.
"""

from __future__ import annotations

import select
import selectors
import socket
import time

from lgss_keyring.daemon import limits
from lgss_keyring.daemon.departing import Departing
from lgss_keyring.daemon.listener import peer_of
from lgss_keyring.formats import pipe
from lgss_keyring.formats.wiping import wipe
from lgss_keyring.monitor.worker_process import refuse_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Request(Protocol):
        """What a peer has asked for."""

        def close(self) -> None:
            """Nobody waits for it any more."""


class DescriptorsError(Exception):
    """The next record of a peer carries descriptors."""


class Peer:
    """One connection.  ``pid``, ``uid`` and ``gid`` are those that the kernel recorded when it was
    made (SO_PEERCRED, unix(7))."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pid, self.uid, self.gid = peer_of(connection)
        self.last_record = time.monotonic()
        """When its last record was read, or it connected."""
        self.under_way: set[Request] = set()
        """Its requests that are being worked on."""
        self.waits = False
        """Whether it has a record that nobody may work on yet."""

    def receive(self) -> bytes:
        """The next record; empty at the end.  Raises BlockingIOError if there is none, and
        DescriptorsError, without taking the record, if it carries descriptors."""
        if self.uid:
            flags = self.connection.recvmsg(1, 0, socket.MSG_PEEK)[2]
            if flags & socket.MSG_CTRUNC:
                raise DescriptorsError
        # One byte more than a record has, so that a longer one is not taken for one.
        data = self.connection.recv(pipe.UPCALL_SIZE + 1)
        self.last_record = time.monotonic()
        return data

    def answer(self, seq: int, packed: bytes) -> None:
        """Send a downcall with the key payload ``packed``; it is lost if the peer does not read."""
        message = pipe.pack_downcall(seq, packed)
        try:
            self.connection.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass
        wipe(message)


class Peers:
    """All connections.  ``selector`` calls ``on_record(peer)`` for a peer that has a record.  A peer that
    waits is not registered there, so that its records stay in its own queue."""

    def __init__(
        self, selector: selectors.BaseSelector, on_record: Callable[[Peer], None], is_safe: bool = True
    ) -> None:
        """``is_safe``: nobody could connect before the kernel was told to refuse descriptors."""
        self._is_safe = is_safe
        self._selector = selector
        self._on_record = on_record
        self._peers: dict[int, Peer] = {}
        self._departing = Departing()

    def __len__(self) -> int:
        return len(self._peers)

    def waiting(self) -> list[Peer]:
        """The peers that wait for their turn."""
        return [peer for peer in self._peers.values() if peer.waits]

    def welcome(self, connection: socket.socket) -> None:
        """Take a new connection, or close it if there is no place for it."""
        refuse_descriptors(connection)
        connection.setblocking(False)
        peer = Peer(connection)
        of_this_user = sum(each.uid == peer.uid for each in self._peers.values())
        if (peer.uid and of_this_user >= limits.CONNECTIONS_OF_A_USER) or not self._make_room():
            self._close(peer)
            return
        self.add(peer)

    def add(self, peer: Peer) -> None:
        """Look at ``peer`` from now on."""
        self._peers[peer.connection.fileno()] = peer
        self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        self._selector.register(peer.connection, selectors.EVENT_READ, lambda: self._on_record(peer))
        peer.waits = False

    def let_wait(self, peer: Peer) -> None:
        """Leave the record of ``peer`` where it is, until :meth:`resume`."""
        if not peer.waits:
            self._selector.unregister(peer.connection)
            peer.waits = True

    def resume(self, peer: Peer) -> None:
        """Look at ``peer`` again, if it has waited."""
        if peer.waits:
            self._watch(peer)

    def _make_room(self) -> bool:
        """Whether there is a place for one more.  If need be the ordinary user's connection is
        closed that has been idle for the longest time."""
        if len(self._peers) < limits.CONNECTIONS:
            return True
        idle = [each for each in self._peers.values() if each.uid and not each.under_way]
        if idle:
            self.drop(min(idle, key=lambda each: each.last_record))
        return bool(idle)

    def drop(self, peer: Peer) -> None:
        """Close the connection of ``peer``, and give up what it has asked for."""
        del self._peers[peer.connection.fileno()]
        if not peer.waits:
            self._selector.unregister(peer.connection)
        self._close(peer)
        for request in list(peer.under_way):
            request.close()

    def drop_gone(self) -> None:
        """Drop those of the waiting peers that have closed their ends, which nobody looks at else."""
        waiting = {peer.connection.fileno(): peer for peer in self.waiting()}
        if not waiting:
            return
        poll = select.poll()
        for descriptor in waiting:
            poll.register(descriptor, 0)
        for descriptor, _ in poll.poll(0):
            self.drop(waiting[descriptor])

    def drop_all(self) -> None:
        """Close all connections."""
        for peer in list(self._peers.values()):
            self.drop(peer)

    def take_no_more(self) -> None:
        """Read no more records, and close the connections on which no answer is due."""
        for peer in list(self._peers.values()):
            if peer.under_way:
                self.let_wait(peer)
            else:
                self.drop(peer)

    def close_in_child(self) -> None:
        """Close, in a process that was forked, all connections."""
        for peer in self._peers.values():
            peer.connection.close()

    def _close(self, peer: Peer) -> None:
        # Where the kernel refuses descriptors there is nothing that could linger.
        if peer.uid and not (refuse_descriptors(peer.connection) and self._is_safe):
            self._departing.close(peer.connection)
        else:
            peer.connection.close()

    def reap(self) -> bool:
        """Wait for the processes that close connections; returns whether there are any left."""
        return self._departing.reap()
