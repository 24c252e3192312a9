"""How lgssd's workers are shared out among the uids that ask.

A worker may be held for as long as ``[upcall] timeout``: a user's KDC or acceptor need only be
silent.  So no uid may hold so many that another one finds none:

- A uid has at most its share: all workers of ordinary users, divided by the number of
  ordinary uids that work or wait.
- A uid that came first may hold more than its share, and keeps it until its requests end.
  Therefore some workers are kept for uids that have none: each of these gets its first at once.
- Those that wait are served in turn: first the uid whose last turn is the longest ago.

Root's requests have workers that no other uid can take.
"""

from __future__ import annotations

from lgss_keyring.daemon import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection


class Shares:
    """Counts the workers of each uid, and says who may have one more."""

    def __init__(self) -> None:
        self._working: dict[int, int] = {}
        self._last_turns: dict[int, int] = {}
        self._turn = 0

    def may_start(self, uid: int, waiting: Collection[int]) -> bool:
        """Whether ``uid`` may have one more worker now; ``waiting`` are the uids that wait for
        one."""
        total = sum(self._working.values())
        if total >= limits.WORKERS:
            return False
        if uid == 0:
            return True
        own = self._working.get(uid, 0)
        of_users = total - self._working.get(0, 0)
        if own == 0:
            return of_users < limits.WORKERS_OF_USERS
        if of_users >= limits.WORKERS_OF_USERS - limits.WORKERS_FOR_NEWCOMERS:
            return False
        return own < self._share({uid, *self._working, *waiting} - {0})

    @staticmethod
    def _share(uids: Collection[int]) -> int:
        """How many workers each of the ordinary ``uids`` may have."""
        return max(1, min(limits.WORKERS_OF_A_USER, limits.WORKERS_OF_USERS // len(uids)))

    def started(self, uid: int) -> None:
        """A worker of ``uid`` has started: this was its turn."""
        self._working[uid] = self._working.get(uid, 0) + 1
        self._turn += 1
        self._last_turns[uid] = self._turn
        if len(self._last_turns) > limits.TURNS:
            self._last_turns = {each: self._last_turns[each] for each in self._working}

    def ended(self, uid: int) -> None:
        """A worker of ``uid`` has ended."""
        self._working[uid] -= 1
        if not self._working[uid]:
            del self._working[uid]

    def last_turn(self, uid: int) -> int:
        """The number of the last turn of ``uid``; numbers grow with time.  0: it had none lately."""
        return self._last_turns.get(uid, 0)
