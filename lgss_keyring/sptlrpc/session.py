"""One side's use of established keys: messages signed and sealed, checked and opened.

What contexts of a client and those of a server have in common, keys or no keys in the
kernel: the tokens of docs/protocol.md 8, counted out and counted in.
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
    """``context`` None: gssnull, which protects nothing.

    Pieces are a Lustre message's buffers, without their padding; a *GSS header* is
    buffer 0 of a sealed message.  Safe between threads.  Checking methods raise
    MechanismError with the status of RFC 2743: GSS_S_DEFECTIVE_TOKEN, GSS_S_BAD_MIC,
    GSS_S_DUPLICATE_TOKEN, GSS_S_OLD_TOKEN.
    """

    def __init__(self, context: Krb5Context | None, flavor: Flavor, window: int) -> None:
        self.flavor = flavor
        self.context = context
        self.window_size = window
        self.initiator = context is None or bool(context.flags & INITIATOR)
        # next() on it is one step of the interpreter's, so no number is given twice.
        self._numbers = itertools.count(context.send_seq if context else 0)
        self._window = Window(window)

    def reversed(self) -> Session:
        """The session for calls in the other direction on the same keys (docs/protocol.md 8):
        the initiator flipped, send and receive sequences swapped."""
        other = Session(self.context, self.flavor, self.window_size)
        other.initiator = not self.initiator
        highest = self._window.highest
        other._numbers = itertools.count(0 if highest is None else highest + 1)
        return other

    # Out.

    def sign(self, pieces: Sequence[Bytes]) -> bytes:
        """The MIC token over what the flavor covers; empty where it covers nothing."""
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
        """The wrap token of ``message``; raises FlavorError where the flavor has no
        encryption."""
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
        """The wrap bulk token and the encrypted pages, each rounded up to 16 bytes."""
        context = self._sealing()
        return tokens.wrap_bulk(
            context.ke,
            context.ki,
            context.enctype,
            pages,
            sequence=next(self._numbers),
            acceptor=not self.initiator,
        )

    # In.

    def verify(self, pieces: Sequence[Bytes], token: bytes) -> None:
        """Check the other side's MIC token, and that it is new."""
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
        """The message in a wrap token of the other side's.

        With ``length`` exactly that many bytes; without it, the padding that the sender
        may have added stays (docs/protocol.md 8 does not tell the two apart).
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
        """The pages, of ``lengths`` bytes each."""
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
        """At most how many bytes the flavor's tokens add to a message of any size: a MIC
        token, or what sealing adds, padding included."""
        if self.context is None:
            return 0
        if self.flavor.seals:
            return tokens.wrap_size(self.context.enctype, 0) + tokens.BLOCK - 1
        return self.flavor.token_size(self.context.enctype)
