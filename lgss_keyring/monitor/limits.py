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
