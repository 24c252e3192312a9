"""Asks workers to take dead contexts out of their users' keyrings, and counts what they find.

:mod:`lgss_keyring.worker.dead_keys` says what is dead, and how it is taken out.  A user whose worker has
ended has no new keys of ours: what is left there is found at that user's next request.
"""

from __future__ import annotations

import time

from lgss_keyring.daemon import limits
from lgss_keyring.daemon.resident_worker import ClosedError
from lgss_keyring.formats import job_messages
from lgss_keyring.formats.job_messages import DeadKeys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.daemon.pool import Pool
    from lgss_keyring.daemon.resident_worker import Worker
    from lgss_keyring.system.log import Log


class Reaper:
    """The server's loop calls :meth:`turn` at least once in a second while there are workers.

    ``found`` has what workers have counted, by the names of
    :class:`lgss_keyring.formats.job_messages.DeadKeys`, since lgssd was started.  A user's worker is under
    that user's control, so a user may make these numbers wrong.
    """

    def __init__(self, pool: Pool, log: Log) -> None:
        self._pool = pool
        self._log = log
        self._due: dict[int, float] = {}
        """When to look next, by owner; times are of time.monotonic()."""
        self._looks: set[_Look] = set()
        self._next_turn = 0.0
        self.found = {"revoked": 0, "expired": 0, "orphans": 0}

    def turn(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if now < self._next_turn:
            return
        self._next_turn = now + limits.REAP_IDLE_SECONDS / 4
        for look in [each for each in self._looks if now > each.end]:
            look.give_up()
        for owner in [owner for owner, due in self._due.items() if now > due + limits.REAP_SECONDS]:
            del self._due[owner]  # it has had no worker for long
        at_work = {each.worker.owner for each in self._looks}
        for worker in self._pool.all():
            due = self._due.setdefault(worker.owner, now)
            if due <= now and worker.owner not in at_work and self._may_look(worker, now - due):
                at_work.add(worker.owner)
                self._begin(worker, now)

    @staticmethod
    def _may_look(worker: Worker, late: float) -> bool:
        if worker.is_retired or worker.gid is None or worker.is_blocked:
            return False
        idle = not worker.jobs and time.monotonic() - worker.idle_since >= limits.REAP_IDLE_SECONDS
        return idle or late > limits.REAP_BUSY_SECONDS

    def _begin(self, worker: Worker, now: float) -> None:
        self._due[worker.owner] = now + limits.REAP_SECONDS
        look = _Look(self, self._pool, worker, now + limits.REAP_ANSWER_SECONDS)
        try:
            look.number = self._pool.begin(
                worker, look, lambda number: job_messages.with_number(number, job_messages.COLLECT)
            )
        except ClosedError:
            return  # it has ended, which is found elsewhere
        self._looks.add(look)

    def ended(self, look: _Look, found: DeadKeys | None) -> None:
        """``look`` has ended, with what was ``found``, if the worker has said that."""
        self._looks.discard(look)
        if found is None:
            return
        owner = look.worker.owner
        for name in self.found:
            self.found[name] += getattr(found, name)
        if found.waiting:
            self._due[owner] = time.monotonic() + limits.REAP_ORPHAN_SECONDS
        if found.revoked or found.orphans:
            whose = "the machine" if owner < 0 else f"uid {owner}"
            text = f"{found.revoked} revoked and {found.orphans} orphaned contexts were taken out"
            self._log.event("info", f"worker of {whose} says: {text} of the user keyring", step="reaped")


class _Look:
    """One look of ``worker``, as a client of the pool.  ``end``: when its answer must be there."""

    def __init__(self, reaper: Reaper, pool: Pool, worker: Worker, end: float) -> None:
        self._reaper = reaper
        self._pool = pool
        self._idle_since = worker.idle_since
        self.worker = worker
        self.end = end
        self.number = 0
        self.is_begun = False

    def received(self, message: bytes) -> None:
        """Take the counts; raises struct.error."""
        found = DeadKeys.unpack(message)
        was_alone = len(self.worker.jobs) == 1
        self._pool.ended(self.worker, self.number)
        if was_alone:
            self.worker.idle_since = self._idle_since  # nobody has needed it
        self._reaper.ended(self, found)

    def worker_ended(self, how: str) -> None:
        """The worker has ended, and nobody waits for the counts."""
        self._reaper.ended(self, None)

    def moved(self) -> None:
        """The worker is blocked by a request: the next look is due in a while."""
        self._reaper.ended(self, None)

    def give_up(self) -> None:
        """Its time is over."""
        if self.worker.page.look()[1] == self.number and self.worker.is_blocked:
            self._pool.kill(self.worker, "a look at the user keyring took too long")
        else:
            self._pool.drop(self.worker, self.number)
            self._reaper.ended(self, None)
