"""The socket at which processes ask lgssd by the records of the older pipe upcall.

*A record that comes too early waits.*  It stays in its socket, and the socket is not looked at
until its uid has fewer requests in hand.  The peer notices only that it takes longer, and all that
a flood fills is the flooder's own queue.  The alternative, an EBUSY for what is too much, would make
every honest burst fail (hundreds of targets after a reboot).  What is in hand waits for a worker by
:mod:`.turns`, together with the upcalls of the same uid.
"""

from __future__ import annotations

import selectors
import time

from lgss_keyring.daemon import limits, listener
from lgss_keyring.daemon.peers import DescriptorsError, Peer, Peers
from lgss_keyring.daemon.record import RecordUpcall, request_of
from lgss_keyring.formats import payload, pipe
from lgss_keyring.formats.errors import Kind, LgssError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from lgss_keyring.daemon.dispatcher import Dispatcher
    from lgss_keyring.daemon.settings import Settings
    from lgss_keyring.system.log import Log


def listen(path: str) -> socket.socket:
    """A listening socket at ``path``, open to every user: what each may ask for is checked.  Raises
    OSError."""
    return listener.listen(path, limits.BACKLOG, listener.EVERYBODY)


class Records:
    """The peers of ``listening``, and their requests.  ``is_taken_over``: it has listened before this
    process was there."""

    def __init__(
        self,
        listening: socket.socket,
        settings: Settings,
        dispatcher: Dispatcher,
        selector: selectors.BaseSelector,
        log: Log,
        is_taken_over: bool = False,
    ) -> None:
        self._listener = listening
        self._settings = settings
        self._dispatcher = dispatcher
        self._selector = selector
        self._log = log
        self._in_hand: dict[int, int] = {}
        """How many requests of each uid lgssd has; none is 0."""
        self._looked_for_gone = 0.0
        self._is_listening = True
        self.peers = Peers(selector, self.read, is_safe=not is_taken_over)
        selector.register(listening, selectors.EVENT_READ, self._accept)

    def __len__(self) -> int:
        return len(self.peers)

    def _accept(self) -> None:
        for _ in range(limits.ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.peers.welcome(connection)

    # What is in hand.

    def _may_take(self, uid: int) -> bool:
        """Whether lgssd takes one more request of ``uid``; one of which it has none is not kept out."""
        own = self._in_hand.get(uid, 0)
        if uid == 0:
            return own < limits.RECORDS
        of_users = sum(self._in_hand.values()) - self._in_hand.get(0, 0)
        return own == 0 or (own < limits.RECORDS_OF_A_USER and of_users < limits.RECORDS)

    def _count(self, uid: int, change: int) -> None:
        number = self._in_hand.get(uid, 0) + change
        if number:
            self._in_hand[uid] = number
        else:
            self._in_hand.pop(uid, None)

    def _ended(self, record: RecordUpcall) -> None:
        record.peer.under_way.discard(record)
        self._count(record.requestor, -1)

    def turn(self) -> None:
        """Take what may be taken now of those that wait: first of the peer whose last record is the
        longest ago.  The server's loop calls this after each round."""
        self.peers.reap()
        if not self._is_listening:
            return
        now = time.monotonic()
        if now - self._looked_for_gone >= limits.CLOCK_SECONDS:
            self._looked_for_gone = now
            self.peers.drop_gone()
        while startable := [peer for peer in self.peers.waiting() if self._may_take(peer.uid)]:
            peer = min(startable, key=lambda each: each.last_record)
            self.peers.resume(peer)
            self.read(peer)

    # What peers send.

    def read(self, peer: Peer) -> None:
        """Read a record of ``peer`` and take it, or let it wait."""
        if peer.connection.fileno() < 0:
            return  # it was closed in this round of the loop, to make room for another connection
        if not self._may_take(peer.uid):
            self.peers.let_wait(peer)
            return
        try:
            data = peer.receive()
        except BlockingIOError:
            return
        except DescriptorsError:
            self._complain(peer, "sends descriptors: the connection is closed", Kind.DESCRIPTORS)
            data = b""
        except OSError:
            data = b""
        if data:
            self._take(peer, data)
        else:
            self.peers.drop(peer)

    def _take(self, peer: Peer, data: bytes) -> None:
        seq = pipe.seq_of(data)
        if seq is None:
            return  # there is no number that an answer could have
        try:
            upcall = pipe.Upcall.unpack(data)
            request = request_of(upcall, peer)
        except LgssError as error:
            self._complain(peer, error.reason, error.kind)
            peer.answer(seq, payload.FailurePayload(error.errno, error.major).pack())
            return
        self._count(peer.uid, 1)
        settings = self._settings.current
        self._dispatcher.add(RecordUpcall(peer, upcall, request, settings, self._dispatcher, self._ended))

    def _complain(self, peer: Peer, text: str, kind: str) -> None:
        self._log.event("warning", f"uid {peer.uid}: {text}", error=kind, requestor=peer.uid)

    # The end.

    def stop_taking(self) -> None:
        """Take no more connections and records."""
        if self._is_listening:
            self._is_listening = False
            self._selector.unregister(self._listener)
        self.peers.take_no_more()

    def close(self) -> None:
        """Close all connections: what they have asked for gets no answer."""
        self.stop_taking()
        self.peers.drop_all()

    def close_in_child(self) -> None:
        """Close, in a process that was forked, what this one has open."""
        self._listener.close()
        self.peers.close_in_child()
