"""The monitor's limits and times, in seconds."""

from __future__ import annotations

MARGIN = 1.0
"""How long before a ``user`` key expires its negotiation is ended, so that the answer arrives in time."""
FORGED_PATIENCE = 5.0
"""How long an update may fail with EAGAIN before the request is given up as forged: no context of
the kernel is ever bound to a forged machine request (docs/security.md, "Whom we believe")."""
DYING_SECONDS = 0.2
"""How long a worker that has closed its socket may take to end."""
ALARM_MARGIN = 0.5
"""How long after a deadline the alarm interrupts the monitor, if nothing else has noticed it."""

# One uid's upcalls (lgss_keyring/monitor/turn.py).

UPCALLS_AT_WORK = 16
"""How many upcalls of an ordinary uid work at a time.  Each is three processes."""
MACHINE_UPCALLS_AT_WORK = 8
"""How many requests for the machine's credential from an ordinary uid's processes work at a time."""
WAITING_PROCESSES = 12
"""How many upcalls of one uid may wait in processes of their own, which take 5 MiB each (witness and
child together)."""
MACHINE_WAITING_PROCESSES = 8
"""The same for requests for the machine's credential from an ordinary uid's processes."""
MACHINE_TURN_SECONDS = 5.0
"""How long such a request waits for its turn: the rest of `[upcall] machine_wait` is its KDC's."""
WORK_SHARE = 0.1
"""What part of an upcall's time must be left when its turn comes."""
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.2
"""Seconds between two looks for a free slot, in an upcall's own process."""
QUEUE_PAUSE = 0.02
"""Seconds between two looks for a free slot, in the queue keeper."""
QUEUE_LENGTH = 1000
"""Requests that a queue keeper takes.  The kernel's quota of keys is 200 for each user."""
QUEUE_LINGERS = 1.0
"""Seconds that a queue keeper stays when nothing waits: to start one costs 60 ms of CPU time."""
HAND_OVER_SECONDS = 2.0
"""How long one end of a hand-over waits for the other."""
KEEPER_SECONDS = 5.0
"""How long a child waits for a queue keeper to begin before it waits in a process of its own."""
LOCK_FILES = 1000
"""Lock files that nobody holds are swept when there are more files."""
