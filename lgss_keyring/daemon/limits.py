"""The limits of lgssd, with their units."""

CONNECTIONS = 256
"""Connections at a time."""

CONNECTIONS_OF_A_USER = 32
"""Connections of one ordinary uid at a time."""

ACCEPTED_AT_ONCE = 32
"""Connections that are accepted before requests are looked at again."""

WORKERS = 64
"""Requests under way at a time; each is a monitor and a worker, two processes."""

WORKERS_OF_USERS = 48
"""Those of ordinary uids together: the difference to :data:`WORKERS` is left for root."""

WORKERS_FOR_NEWCOMERS = 8
"""Of :data:`WORKERS_OF_USERS`, those that are kept for uids of which no request is under way."""

WORKERS_OF_A_USER = 16
"""Those of one ordinary uid, however few others there are."""

TURNS = 1024
"""Uids whose last turn is remembered."""

MONITOR_MARGIN = 10.0
"""Seconds beyond ``[upcall] timeout`` after which a monitor is killed.  It holds the deadline
itself, and its answer names the cause, so it must come first."""

DYING_SECONDS = 1.0
"""Seconds that killed processes are waited for when lgssd ends."""

BACKLOG = 128
"""Connections that wait to be accepted (listen(2))."""
