"""Limits and time-outs of the library, each with its unit in its name."""

from __future__ import annotations

REQUEST_SECONDS = 10.0
"""How long request_key(2) itself is waited for, unless the policy's options say otherwise."""
UPCALL_SECONDS = 35.0
"""How long an upcall's answer is waited for, unless the policy's options say otherwise."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.001, 0.05
"""Between two looks at a key that has no answer yet: they grow from the first to the longest."""
NAME_FREE_SECONDS = 2.0
"""How long a key's name is waited for after the last key of that name was invalidated.
The kernel's collector mostly takes a millisecond."""
FAILURE_SHOWN_SECONDS = 4 * LONGEST_PAUSE_SECONDS
"""How long a failed key stays, so that every process that waits for it looks at it in time."""
REVOKED_LOCK_TRIES = 20
"""How often the lock on /proc/keys is tried for, FIRST_PAUSE_SECONDS apart."""

CONNECT_SECONDS = 1
"""How long lgssd may take to accept a connection."""
SOCKET_LOOK_SECONDS = 0.1
"""How often the thread that reads lgssd's answers looks at deadlines."""

REVERSE_GRACE = 30.0
"""Seconds that a reverse context lives on after a newer one has been installed."""

WINDOW_NUMBERS = 65536
"""The largest replay window: the other side chooses its size, and each number costs a bit."""
BUFFER_STEP_BYTES = 512
"""Buffers have a multiple of this size, because messages grow in small steps."""
