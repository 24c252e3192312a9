"""All requests of lgssd that are under way: their turns, their workers and their deadlines."""

from __future__ import annotations

import time

from lgss_keyring.daemon import limits, metrics
from lgss_keyring.daemon.pool import Pool
from lgss_keyring.daemon.reaper import Reaper
from lgss_keyring.daemon.renewals import Renewals
from lgss_keyring.daemon.room import FullError
from lgss_keyring.daemon.scrapes import Scrapes
from lgss_keyring.daemon.turns import Turns
from lgss_keyring.system import subordinate
from lgss_keyring.worker import resident

TYPE_CHECKING = False
if TYPE_CHECKING:
    import selectors
    from collections.abc import Callable

    from lgss_keyring.daemon.negotiation import Negotiation
    from lgss_keyring.daemon.pool import Run
    from lgss_keyring.daemon.settings import Settings
    from lgss_keyring.system.log import Log


class Dispatcher:
    """Gives each request a worker when it is its turn.  The server's loop calls :meth:`turn` after
    each round."""

    def __init__(
        self,
        settings: Settings,
        selector: selectors.BaseSelector,
        log: Log,
        in_child: Callable[[], None],
        run: Run = resident.run,
    ) -> None:
        """``in_child()`` closes, in a process that was forked, what this one has open; ``run`` is the work
        of a worker."""
        self._settings = settings
        self._turns = Turns()
        self._all: set[Negotiation] = set()
        self._changed: list[Negotiation] = []
        """Those that have ended, or need a worker again."""
        self._in_child = in_child
        self.pool = Pool(selector, run, log, self._close_in_child)
        self.metrics = self.pool.metrics
        self.reaper = Reaper(self.pool, log)
        self.scrapes = Scrapes(self, lambda: settings.current, selector, log, self._close_in_child)
        self.renewals = Renewals(lambda: settings.current, log, self._close_in_child)
        self._numbers: dict[int, int] = {}
        self._looked_at_workers = self._looked_at_clocks = 0.0

    def _close_in_child(self) -> None:
        self.scrapes.close_in_child()
        self.pool.close_in_child()
        self._in_child()

    @property
    def timeout(self) -> float:
        """Seconds until :meth:`turn` has to be called again, whatever comes."""
        if self._all:
            return limits.TICK_SECONDS
        due = min(self.renewals.timeout, self.scrapes.timeout)
        return min(1.0, due) if self.pool.has_processes else due

    def add(self, negotiation: Negotiation) -> None:
        """Take a new request."""
        self._all.add(negotiation)
        self._count(negotiation.requestor, 1)
        self._turns.wait(negotiation)

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker."""
        return len(self._turns)

    def __len__(self) -> int:
        return len(self._all)

    def send_back_waiting(self) -> None:
        """End the requests that no worker has in hand: those who asked do without lgssd."""
        for negotiation in list(self._all):
            if negotiation.waits:
                negotiation.cause = metrics.ENDING
                negotiation.close()
        self._look_at_changed()

    def changed(self, negotiation: Negotiation) -> None:
        """``negotiation`` has ended, or needs a worker again."""
        self._changed.append(negotiation)

    def has_room(self, requestor: int) -> bool:
        """Whether one more of ``requestor`` may be added."""
        of_this_user = self._numbers.get(_counted(requestor), 0)
        is_full = len(self._all) >= limits.UPCALLS
        return not is_full and (requestor == 0 or of_this_user < limits.UPCALLS_OF_A_USER)

    def _count(self, uid: int, change: int) -> None:
        uid = _counted(uid)
        number = self._numbers.get(uid, 0) + change
        if number:
            self._numbers[uid] = number
        else:
            self._numbers.pop(uid, None)

    def _start(self, negotiation: Negotiation) -> bool:
        """Give ``negotiation`` a worker; False if it has to wait for one."""
        if not negotiation.has_begun:
            negotiation.has_begun = True
            if not negotiation.begin(self._settings):
                return True
        current = self._settings.current
        try:
            worker = self.pool.worker_for(negotiation.owner, negotiation.request, current, current.log.level)
        except FullError:
            return negotiation.is_sent_back()
        except OSError as error:
            negotiation.fail_short(error)
            return True
        if worker is None:
            return False
        negotiation.has_turn = True
        negotiation.start(worker)
        return True

    def turn(self) -> None:
        """Do what is due: begin what waits, and look at deadlines and workers."""
        now = time.monotonic()
        if self._turns and self._settings.look():
            self.pool.retire_all()
        if now - self._looked_at_workers >= limits.TICK_SECONDS:
            self._looked_at_workers = now
            self.pool.look_after()
            self.pool.reap()
        if now - self._looked_at_clocks >= limits.CLOCK_SECONDS:
            self._looked_at_clocks = now
            for negotiation in list(self._all):
                negotiation.look_at_clock(now)
        self._look_at_changed()
        self._turns.serve(self._start, limits.MESSAGES_AT_ONCE)
        self._look_at_changed()
        self.renewals.turn()
        self.reaper.turn()
        self.scrapes.turn()

    def _look_at_changed(self) -> None:
        while self._changed:
            negotiation = self._changed.pop()
            if negotiation.is_closed:
                if negotiation in self._all:
                    self._all.remove(negotiation)
                    self._turns.leave(negotiation)
                    self._count(negotiation.requestor, -1)
                    self.metrics.ended(negotiation)
                    negotiation.ended()
            elif negotiation.waits and negotiation.has_turn:
                self._turns.leave(negotiation)
                self._turns.wait(negotiation, again=True)

    def close(self) -> None:
        """End all requests and workers."""
        for negotiation in list(self._all):
            negotiation.close()
        self._look_at_changed()
        self.pool.close()
        self.renewals.close()
        self.scrapes.close()


def _counted(uid: int) -> int:
    """The uid as which ``uid`` is counted: the first of its range if it is a subordinate one."""
    first = subordinate.range_of(uid)
    return first if first >= 0 else uid
