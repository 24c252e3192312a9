"""Message buffers with room for the flavor's token (docs/design-2008.md 5.2.1, alloc_reqbuf
and so on)."""

from __future__ import annotations

import errno

from lgss_keyring.formats.errors import Kind, LgssError

GRAIN = 512
"""Room is given in steps of so many bytes, as messages grow in small steps."""


class MessageBufferError(LgssError):
    """A buffer that is too small, or was freed."""

    default_errno = errno.EMSGSIZE
    default_kind = Kind.BUFFER


class Buffer:
    """``size`` bytes for a message, and behind it room for a token of ``token_size``."""

    def __init__(self, size: int, token_size: int) -> None:
        if size < 0:
            raise MessageBufferError(f"a message of {size} bytes", errno=errno.EINVAL)
        self.size = size
        self.token_size = token_size
        self._data: bytearray | None = bytearray(self._capacity(size))

    def _capacity(self, size: int) -> int:
        return -(-(size + self.token_size) // GRAIN) * GRAIN

    def _live(self) -> bytearray:
        if self._data is None:
            raise MessageBufferError("the buffer was freed", errno=errno.EINVAL)
        return self._data

    @property
    def capacity(self) -> int:
        """How many bytes there are in all."""
        return len(self._live())

    @property
    def message(self) -> memoryview:
        """The message, to be written in place."""
        return memoryview(self._live())[: self.size]

    def enlarge(self, size: int) -> None:
        """Make room for a message of ``size`` bytes, what is there kept; raises
        MessageBufferError while somebody holds :attr:`message`."""
        data = self._live()
        if size < self.size:
            raise MessageBufferError(f"{size} bytes are less than {self.size}", errno=errno.EINVAL)
        more = self._capacity(size) - len(data)
        if more > 0:
            try:
                data.extend(bytes(more))
            except BufferError as error:
                raise MessageBufferError("the message is in use", errno=errno.EBUSY) from error
        self.size = size

    def finish(self, token: bytes) -> bytes:
        """Message and token, as they are sent."""
        if len(token) > self.token_size:
            raise MessageBufferError(f"a token of {len(token)} bytes where {self.token_size} were reserved")
        data = self._live()
        data[self.size : self.size + len(token)] = token
        return bytes(data[: self.size + len(token)])

    def free(self) -> None:
        """Give the memory back; nothing can be done with it afterwards."""
        self._live()
        self._data = None
