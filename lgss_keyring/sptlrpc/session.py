"""One side's use of established keys: it signs and seals messages, and checks and opens them.

Contexts of a client and of a server have this in common, whether or not there are keys in the
kernel.  The tokens are those of docs/protocol.md 8; a session numbers those that it makes, and
checks the numbers of those that it gets.
"""

from __future__ import annotations

import itertools

from lgss_keyring.formats.crypto import tokens
from lgss_keyring.formats.errors import GSS_S_DEFECTIVE_TOKEN, MechanismError
from lgss_keyring.formats.flavor import Flavor, FlavorError
from lgss_keyring.formats.payload import Krb5Context
from lgss_keyring.sptlrpc.window import Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgss_keyring.formats.crypto.tokens import Bytes

INITIATOR = 1


class Session:
    """The keys in ``context``, used for messages of ``flavor``; ``window`` is the size of the
    replay window.  Without a context (gssnull) nothing is protected.

    *Pieces* are a Lustre message's buffers, without their padding; ``header`` is the GSS
    header, buffer 0 of a sealed message.  Safe between threads.  Methods that check raise
    MechanismError with the status of RFC 2743: GSS_S_DEFECTIVE_TOKEN, GSS_S_BAD_MIC,
    GSS_S_DUPLICATE_TOKEN, GSS_S_OLD_TOKEN.
    """

    def __init__(self, context: Krb5Context | None, flavor: Flavor, window: int) -> None:
        self.flavor = flavor
        self.context = context
        self.window_size = window
        self.initiator = context is None or bool(context.flags & INITIATOR)
        # next() is one step of the interpreter, so two threads never get the same number.
        self._numbers = itertools.count(context.send_seq if context else 0)
        self._window = Window(window)

    def reversed(self) -> Session:
        """The session for calls in the other direction on the same keys (docs/protocol.md 8).
        Initiator and acceptor change places, and so do the sequences of both sides."""
        other = Session(self.context, self.flavor, self.window_size)
        other.initiator = not self.initiator
        highest = self._window.highest
        other._numbers = itertools.count(0 if highest is None else highest + 1)
        return other

    # For messages that are sent.

    def sign(self, pieces: Sequence[Bytes]) -> bytes:
        """The MIC token of the pieces that the flavor covers; empty if it covers none."""
        context = self.context
        covered = self.flavor.covered(len(pieces))
        if context is None or not covered:
            return b""
        return tokens.make_mic(
            context.kc,
            context.enctype,
            pieces if covered == len(pieces) else pieces[:covered],
            sequence=next(self._numbers),
            acceptor=not self.initiator,
        )

    def seal(self, header: bytes, message: Bytes) -> bytes:
        """The wrap token of ``message``; raises FlavorError if the flavor does not encrypt."""
        context = self._sealing()
        return tokens.wrap(
            context.ke,
            context.ki,
            context.enctype,
            header,
            message,
            sequence=next(self._numbers),
            acceptor=not self.initiator,
        )

    def wrap_bulk(self, pages: Sequence[Bytes]) -> tuple[bytes, list[bytes]]:
        """The wrap bulk token and the encrypted pages, each rounded up to 16 bytes; raises
        FlavorError if the flavor does not encrypt."""
        context = self._sealing()
        return tokens.wrap_bulk(
            context.ke,
            context.ki,
            context.enctype,
            pages,
            sequence=next(self._numbers),
            acceptor=not self.initiator,
        )

    # For messages that are received.

    def verify(self, pieces: Sequence[Bytes], token: bytes) -> None:
        """Check the other side's MIC token, and that its number is new."""
        context = self.context
        covered = self.flavor.covered(len(pieces))
        if context is None or not covered:
            if token:
                raise MechanismError(
                    f"a token where flavor {self.flavor} has none", major=GSS_S_DEFECTIVE_TOKEN
                )
            return
        self._window.accept(
            tokens.verify_mic(context.kc, context.enctype, pieces[:covered], token, acceptor=self.initiator)
        )

    def unseal(self, header: bytes, token: Bytes, length: int | None = None) -> bytes:
        """The message in a wrap token of the other side.

        With ``length`` it has exactly that many bytes.  Without it, the padding that the
        sender may have added stays, because a token does not say where the message ends
        (docs/protocol.md 8).
        """
        context = self._sealing()
        number, padded = tokens.unwrap(
            context.ke, context.ki, context.enctype, header, token, acceptor=self.initiator
        )
        self._window.accept(number)
        if length is None:
            return padded
        if not len(padded) - tokens.BLOCK < length <= len(padded):
            raise MechanismError(
                f"a message of {len(padded)} bytes with padding where {length} were said",
                major=GSS_S_DEFECTIVE_TOKEN,
            )
        return padded[:length]

    def unwrap_bulk(self, token: bytes, sealed: Sequence[Bytes], lengths: Sequence[int]) -> list[bytes]:
        """The pages in a wrap bulk token of the other side; page *n* has ``lengths[n]`` bytes."""
        context = self._sealing()
        number, pages = tokens.unwrap_bulk(
            context.ke, context.ki, context.enctype, token, sealed, lengths, acceptor=self.initiator
        )
        self._window.accept(number)
        return pages

    def _sealing(self) -> Krb5Context:
        if self.context is None or not self.flavor.seals:
            raise FlavorError(f"flavor {self.flavor} does not encrypt")
        return self.context

    def overhead(self) -> int:
        """At most how many bytes the flavor's token adds to a message of any size: a MIC
        token's, or those that sealing adds, padding included."""
        if self.context is None:
            return 0
        if self.flavor.seals:
            return tokens.wrap_size(self.context.enctype, 0) + tokens.BLOCK - 1
        return self.flavor.token_size(self.context.enctype)
