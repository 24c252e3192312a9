"""The limits of this folder, with their units."""

CONFIG_BYTES = 8 << 10
"""Bytes of the configuration file.  tomllib needs 12 s for a dotted key of 64 kB, and 0.25 s for
one of 8 kB: its time grows with the square of the length."""

LOG_PATIENCE = 2.0
"""Seconds that the line about an answered key may wait for a journal that is busy with the lines
of a hundred other upcalls."""

LOG_MESSAGE = 2000
"""Characters of a message in the log."""

LOG_KMSG = 900
"""Characters of a message in the kernel's log: a record of 1024 bytes with what is before it
(/dev/kmsg refuses longer ones)."""

LOG_FIELD = 200
"""Characters of the value of a field in the log."""

LOG_WINDOW = 10.0
"""Seconds in which the lines of one user are counted together."""

LOG_LINES = 20
"""Lines that one user's requests may write in :data:`LOG_WINDOW`."""

LOG_LINES_AT_DEBUG = 2000
"""The same at level debug: a negotiation writes about twelve lines there, and an administrator
who looks for a fault needs all of them."""

LOG_SLOTS = 4096
"""Users whose lines can be counted at a time; the file has 24 bytes for each."""

LOG_LOCK_TRIES = 4
"""How often a slot that is locked is tried, without a pause."""
