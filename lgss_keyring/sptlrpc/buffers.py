"""Message buffers with room for the flavor's token (docs/design-2008.md 5.2.1: alloc_reqbuf and the
other operations on buffers)."""

from __future__ import annotations

import errno

from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.sptlrpc.limits import BUFFER_STEP_BYTES


class MessageBufferError(LgssError):
    """The buffer is too small, is in use, or was freed."""

    default_errno = errno.EMSGSIZE
    default_kind = Kind.BUFFER


class Buffer:
    """``size`` bytes for a message, followed by room for a token of ``token_size`` bytes."""

    def __init__(self, size: int, token_size: int) -> None:
        if size < 0:
            raise MessageBufferError(f"a message of {size} bytes", errno=errno.EINVAL)
        self.size = size
        self.token_size = token_size
        self._data: bytearray | None = bytearray(self._capacity(size))

    def _capacity(self, size: int) -> int:
        return -(-(size + self.token_size) // BUFFER_STEP_BYTES) * BUFFER_STEP_BYTES

    def _live(self) -> bytearray:
        if self._data is None:
            raise MessageBufferError("the buffer was freed", errno=errno.EINVAL)
        return self._data

    @property
    def capacity(self) -> int:
        """The size of the whole buffer in bytes."""
        return len(self._live())

    @property
    def message(self) -> memoryview:
        """The part for the message, to be written in place."""
        return memoryview(self._live())[: self.size]

    def enlarge(self, size: int) -> None:
        """Make room for a message of ``size`` bytes; the bytes of the present message stay.

        Raises MessageBufferError for a smaller size than before, and while somebody holds
        :attr:`message`.
        """
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
        """Message and token, as they are sent; raises MessageBufferError for a token that
        is longer than ``token_size``."""
        if len(token) > self.token_size:
            raise MessageBufferError(f"a token of {len(token)} bytes where {self.token_size} were reserved")
        data = self._live()
        data[self.size : self.size + len(token)] = token
        return bytes(data[: self.size + len(token)])

    def free(self) -> None:
        """Give the memory back.  Everything else raises MessageBufferError afterwards."""
        self._live()
        self._data = None
