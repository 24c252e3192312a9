"""What the front and the process that serves the upcall say to each other, by two pipes.

The second is called the child here.  The child of a machine's upcall gives its *word* before the
key is instantiated: that the credential is there, or the errno to reject the key with.  Only an
error at that time ends a mount: it gives up if request_key(2) fails at its first upcall, and every
later error sends Lustre's recovery into a loop of upcalls for minutes (docs/protocol.md 7).  An
ordinary user's upcall is instantiated at once, and its child gives no word.

The word is one write of 1 or 5 bytes: ``G``, or ``R``, u16 errno, u16 seconds that the rejection
lives, in host byte order.  The front writes the byte ``1`` when the key is instantiated, and ``Q`` when
it has rejected the key by lgssd's word, or begins anew without lgssd.  If it ends before, the child
reads the end of the pipe.
"""

from __future__ import annotations

import os
import sys

GO = b"G"
REJECT = b"R"
INSTANTIATED = b"1"
QUIT = b"Q"


class Child:
    """The child's ends of the pipes to its front."""

    def __init__(self, word: int, instantiated: int) -> None:
        """``word``: the descriptor to write the word to, -1 for an upcall without one;
        ``instantiated``: the one to read the front's answer from."""
        self._word = word
        self._instantiated = instantiated
        self.witness = 0
        """The pid of the witness, which was forked while the requestor still waited; 0: none."""
        self.started = 0.0
        """When the front began, of time.monotonic(): the upcall's deadlines count from there.
        0: from when the child serves it."""
        self.is_over = False
        """Whether the front has told this child to end, as there is nothing left for it to do."""

    @property
    def descriptors(self) -> list[int]:
        """Those of its descriptors that are still open."""
        return [each for each in (self._word, self._instantiated) if each >= 0]

    @property
    def is_due(self) -> bool:
        """Whether the front waits for a word."""
        return self._word >= 0

    def go(self) -> bool:
        """Let the front instantiate the key, and wait until it has; see :meth:`wait`."""
        self._say(GO)
        return self.wait()

    def wait(self) -> bool:
        """Wait until the front has instantiated the key.

        Returns False if the front ends before: it was killed, or has refused.  So it does if the
        front's byte was read before, by the program that this process was (--instantiated).
        """
        try:
            done = os.read(self._instantiated, 1)
            os.close(self._instantiated)
        except OSError:
            done = b""  # that program has closed it
        self._instantiated = -1
        self.is_over = done == QUIT
        return done == INSTANTIATED

    def reject(self, number: int, seconds: int) -> None:
        """Let the front reject the key with errno ``number`` for ``seconds``."""
        order = sys.byteorder
        self._say(REJECT + number.to_bytes(2, order) + min(seconds, 0xFFFF).to_bytes(2, order))

    def close(self) -> None:
        """Close both ends, in a process that has nothing to say to the front."""
        for each in self.descriptors:
            os.close(each)
        self._word = self._instantiated = -1

    def _say(self, word: bytes) -> None:
        try:
            os.write(self._word, word)
        except OSError:
            pass  # the front was killed
        os.close(self._word)
        self._word = -1


class NoWordError(Exception):
    """The child has ended without a word."""


def hear(descriptor: int) -> tuple[int, int]:
    """Wait for the child's word: (0, 0) to go on, or the errno and the seconds of a rejection.

    The child bounds the time.  Raises :class:`NoWordError`.
    """
    word = os.read(descriptor, 5)
    if word == GO:
        return 0, 0
    if word[:1] != REJECT or len(word) != 5:
        raise NoWordError
    return int.from_bytes(word[1:3], sys.byteorder), int.from_bytes(word[3:], sys.byteorder)
