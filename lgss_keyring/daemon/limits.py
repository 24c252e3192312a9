"""The limits of lgssd, with their units."""

CONNECTIONS = 256
"""Connections at a time."""

CONNECTIONS_OF_A_USER = 32
"""Connections of one ordinary uid at a time."""

ACCEPTED_AT_ONCE = 32
"""Connections that are accepted before requests are looked at again."""

RECORDS = 1024
"""Records that lgssd has in hand at a time, of root and of all ordinary uids each.  Others wait in their
sockets; but an ordinary uid that has none in hand need not."""

RECORDS_OF_A_USER = 32
"""Of these, those of one ordinary uid."""

DYING_SECONDS = 1.0
"""Seconds that killed processes are waited for when lgssd ends."""

BACKLOG = 128
"""Connections that wait to be accepted (listen(2))."""

# Upcalls (lgss_keyring/daemon/upcalls.py) and resident workers (lgss_keyring/daemon/pool.py).

UPCALLS = 4096
"""Upcalls that have a connection at a time.  One more is told to do the work itself."""

UPCALLS_OF_A_USER = 512
"""Of these, those of one ordinary uid, or of all subordinate uids of one user.  The kernel's quota allows
a uid 100."""

OTHER_DESCRIPTORS = 512
"""Descriptors of lgssd that are not those of upcalls: connections, workers, files."""

FEWEST_UPCALLS = 64
"""Upcalls that may have a connection where few descriptors are allowed."""

UPCALL_BACKLOG = 1024
"""Connections that wait to be accepted (listen(2)); the kernel may allow fewer (somaxconn)."""

RESIDENT_WORKERS = 64
"""Workers at a time.  If there are so many, an ordinary user gets one only if another is idle: the one
that has been idle for longest ends.  Root's own and the machine's are counted, but never wait for room."""

WORKERS_FOR_NEWCOMERS = 16
"""Of these, those that are kept for users who have none."""

WORKERS_OF_AN_OWNER = 4
"""Workers of one user; of the machine; and of the machine for requests from users' processes."""

WORKERS_OF_SUBORDINATES = 16
"""Workers of all subordinate uids of one user (subuid(5)) together."""

ROOM_SECONDS = 1.0
"""An upcall that has had no worker for so long, because others have all of them, is left to its own
process."""

BLOCKED_SECONDS = 0.05
"""A worker that has not come back to its loop for so long is blocked."""

NICE = 5
"""The nice value of a user's first worker: the machine's come first.  An upcall's own processes have a
higher one.  Workers are few, so they need not: programs that keep all processors of a client busy must
not make its users wait."""

NICE_OF_FURTHER = 10
"""That of a user's further workers."""

JOBS_OF_A_WORKER = 16
"""Jobs that a worker has in hand at a time."""

JOBS_IN_ALL = 1000
"""Jobs after which a worker is replaced by a new one: what libraries leak goes with it."""

WORKER_AGE_SECONDS = 3600.0
"""The same by its age."""

IDLE_SECONDS = 30.0
"""A worker without work ends after so long."""

MESSAGES_OF_A_JOB = 100
"""Messages that a worker may send, for each job that it has got: 64 steps, 24 tokens, and a few more."""

LEAVING_SECONDS = 5.0
"""A worker that was told to end and has not is killed after so long."""

JOB_TRIES = 6
"""How many workers may end under a request before it fails."""

AT_WORK_OF_A_USER = 32
"""Requests of one ordinary uid that workers have in hand; the others wait in lgssd."""

MACHINE_AT_WORK_OF_A_USER = 8
"""Requests for the machine's credential from one ordinary uid's processes that workers have in hand."""

MESSAGES_AT_ONCE = 32
"""Messages that are read from one worker, or requests that are given to workers, before others have their
turn."""

HEAD_BYTES = 64
"""Bytes: more than stand before a token in a worker's message."""

SO_SNDBUFFORCE = 32
"""The option of setsockopt(2); the module socket does not name it."""

WORKER_BUFFER_BYTES = 1 << 20
"""The buffer for messages to a worker.  16 replies of 8 KiB fit."""

TICK_SECONDS = 0.025
"""How often blocked workers are looked for while there are upcalls."""

CLOCK_SECONDS = 0.1
"""How often deadlines are looked at."""

UPDATE_SECONDS = 5.0
"""How long a child may take to say that its key is updated, beyond the patience that it was given."""

# Dead contexts in keyrings (lgss_keyring/daemon/reaper.py).

REAP_SECONDS = 60.0
"""How often a user's worker looks for them, while there is one."""

REAP_IDLE_SECONDS = 2.0
"""A worker is asked for it when it has been idle for so long..."""

REAP_BUSY_SECONDS = 15.0
"""...or when this has passed since the look was due."""

REAP_ORPHAN_SECONDS = 3.0
"""How soon it looks again if it has seen what may be an orphan; the worker's own limit is 2 s."""

REAP_ANSWER_SECONDS = 2.0
"""How long its answer is waited for, in which the user's requests come first."""

# Metrics (lgss_keyring/daemon/scrapes.py).

SCRAPES = 2
"""Scrapes at a time."""

SCRAPE_SECONDS = 5
"""How long a scrape may take."""

SCRAPE_REQUEST_BYTES = 8192
"""How long the request of a scrape may be."""

TEXTFILE_SECONDS = 60.0
"""How often the text file with the metrics is written."""

SCRAPE_NICE = 19
"""The nice value of a process that writes metrics: upcalls come first."""

# The life of lgssd (lgss_keyring/daemon/life.py).

LOOK_SECONDS = 5.0
"""How often lgssd looks whether it has to end."""

IDLE_LIFE_SECONDS = 300.0
"""An lgssd that systemd starts when it is needed ends after so long without work, workers and peers."""

ENDING_SECONDS = 1.0
"""How long requests at work may take when lgssd ends.  Then their upcalls' own processes do the work, so
a request loses no more time than this."""

# Renewals of the machine's tickets (lgss_keyring/daemon/renewals.py).

RENEWAL_LOOK_SECONDS = 300.0
"""How often the tickets are looked at, whatever happens: an upcall may have got one that lives shorter."""

NOTES_SECONDS = 60.0
"""How often the folder of notes of uses is looked at where there is nothing else to do..."""

NOTES_SOON_SECONDS = 2.0
"""...and at most, where there is."""

FAILURE_FORGOTTEN_SECONDS = 24 * 3600.0
"""A failed renewal is forgotten so long after the next attempt would have been due."""

RENEWAL_MESSAGES_BYTES = 1 << 16
"""What the process of a renewal may say, and what a pipe holds."""
