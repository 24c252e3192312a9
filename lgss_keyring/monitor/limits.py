"""The monitor's limits and times, in seconds."""

from __future__ import annotations

MARGIN = 1.0
"""Between our limit and the life of a ``user`` key: the answer has to arrive first."""
FORGED_PATIENCE = 5.0
"""How long an update stays EAGAIN before a request is given up as forged: no context of the
kernel is ever bound to a forged machine request (docs/security.md, "Whom we believe")."""
DYING_SECONDS = 0.2
"""Between the end of a process's socket and the end of the process."""
ALARM_MARGIN = 0.5
"""What the alarm leaves to the ordinary ways of noticing the deadline."""
