"""The limits of a worker in one place; each name ends with its unit unless it is a count."""

from __future__ import annotations

# A cached ticket is good while at least the lesser of these two is left of it: so many seconds, or
# its lifetime divided by this number (docs/protocol.md 4).
GOOD_TICKET_SECONDS = 1800
GOOD_TICKET_DIVISOR = 4
CLOCK_SKEW_SECONDS = 300
GOOD_SERVICE_TICKET_SECONDS = 60
"""Instead of GOOD_TICKET_SECONDS, for a ticket of one service: the context ends with it, and the next
one gets another. While the KDC is down this decides how long contexts can be had."""

LOCK_SECONDS = 5.0
"""How long a worker waits for another one that holds the lock of a ticket file of ours."""
LOCK_POLL_SECONDS = 0.005

USED_SECONDS = 24 * 3600.0
"""A ticket of the machine's is renewed if it was used within its own life, or within this time if that
is longer."""
USED_BY_ROOT_SECONDS = 7 * 24 * 3600.0
"""And if root used it within twice its own life, or within this time: any user can forge the other uses."""
USE_FRESH_SECONDS = 60.0
"""A note of a use is not written again for so long."""
USE_FORGOTTEN_SECONDS = 60 * 24 * 3600.0
"""A note of a use that is older is removed."""
USES = 10_000
"""How many notes of uses are looked at."""
USE_BYTES = 1 << 14
"""The longest note of a use."""

RENEWAL_SHARE = 4
"""The part of the time for which upcalls take a ticket, at whose end it is renewed: a quarter."""
RENEWAL_GAIN_SECONDS = 1.0
"""A ticket that does not end later than the old one by this is no gain."""
RENEWAL_PAUSE_SECONDS = 15.0
"""The pause after a renewal that has failed.  It doubles with each failure..."""
RENEWAL_PAUSE_DIVISOR = 32
"""(but it is not more than the ticket's life divided by this)"""
RENEWAL_PAUSE_MOST_SECONDS = 600.0
"""...up to this,"""
RENEWAL_PAUSE_MOST_DIVISOR = 8
"""or the ticket's life divided by this."""

TMP_ENTRIES = 100_000
"""How many entries of /tmp, or of /run/user/UID, are looked at: anybody may fill /tmp."""
CACHE_FILES = 1000
"""How many files of the user's own are opened there as credential caches."""

DATA_BYTES = 256 << 20
"""The memory of a worker, and of each process that a container's code makes there: RLIMIT_DATA.  A
worker uses 20 MiB."""
ADDRESS_SPACE_BYTES = 2 << 30
"""All of its address space, shared mappings and libraries too: RLIMIT_AS."""
CONTAINER_PROCESSES = 16
"""How many processes and threads a container's code may add to those that its user has."""
ANCESTORS = 8
"""How many exiting processes, each the next one's parent, are passed over to a living one."""
CGROUP_TRIES = 4
"""How often the worker follows a process that is moved to another cgroup meanwhile."""

LEGS = 10
"""How many tokens a negotiation sends.  No mechanism in use takes more than three; an acceptor
that continues for ever must not keep the worker."""

REPLY_BYTES = 1 << 17
"""The longest RPC reply.  An AP-REP has a few hundred bytes; tokens with authorization data have
tens of thousands."""
RECEIVE_BYTES = 1 << 14
"""How much is taken from a server's connection at a time."""
VERIFIER_BYTES = 400
"""The longest opaque authentication field (RFC 5531, 8.2)."""
HANDLE_BYTES = 1024
STRAY_REPLIES = 8
"""How many replies to calls that are not ours are passed over before the connection is given up."""

NAME_SECONDS = 1.0
"""How long a resident worker takes the resolver's last answer."""
NAMES = 1000
"""How many of these it has."""
LINKS = 40
"""How many symbolic links are followed to `[names] program`, as many as the kernel follows."""
PROGRAM_LINE_BYTES = 1000
"""How much of the output of `[names] program` is read."""

JOB_MESSAGE_BYTES = 1 << 15
"""The longest message of lgssd's to a resident worker, and more."""
LOOK_SECONDS = 0.1
"""How often a resident worker looks whether a server is late."""

KRB5_CONF_FILES = 100
"""How many files of krb5.conf are looked at for changes."""
KRB5_CONF_BYTES = 1 << 18
"""How much of each is searched for files that it includes."""

DEAD_KEYS = 1024
"""Members of a user keyring that are looked at for dead contexts."""
DEAD_KEYS_SECONDS = 0.05
"""How long such a look may take: requests of that user wait meanwhile."""
DEAD_KEYS_LOCK_TRIES = 3
ORPHAN_SECONDS = 2.0
"""How long a context without a timeout must have been over: the process that sets it may be about to."""
