"""An upcall's turn: ordinary users' upcalls are served a few at a time for each uid.

Otherwise one user could use the machine up: 200 upcalls that one uid held open were 350
processes with 2.7 GiB of memory.  So the process that serves an upcall takes a slot
(:mod:`.slots`) before it imports anything heavy.  If none is free it hands its request over to the
uid's queue keeper (:mod:`.queue_keeper`), one process for all requests that wait, and ends.

An upcall on which others depend must not wait for their slots.  While a monitor writes to
init_channel, Lustre may request a key in its context, for root: so uid 0 takes no slot.  Lustre
also asks for machine contexts in ordinary users' processes, and that user's upcalls may depend on
these: so they have slots of their own.

This module imports little, because it runs in every upcall.
"""

from __future__ import annotations

import errno
import os
import time

from lgss_keyring.monitor import limits
from lgss_keyring.system import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.front.arguments import Call
    from lgss_keyring.front.word import Child


def serve(key: int, call: Call, front: Child) -> None:
    """Serve the upcall for ``key``, which is instantiated unless ``front`` waits for a word,
    when it is its turn.  Returns only if the queue keeper has taken the request over, or if it was
    answered without a turn.
    """
    started = front.started or time.monotonic()
    forked = processes.own_start_time(front.witness)
    turn = Turn(key, call, front, started, forked)
    uid = call.requestor
    # A requestor that is no uid is refused later. Here it must not become part of a path.
    if uid != "0" and uid.isascii() and uid.isdecimal() and len(uid) <= 10 and not turn.come():
        return
    from lgss_keyring.monitor import upcall

    upcall.run(key, call, front, started, forked, turn.slot)


class Turn:
    """One upcall of an ordinary uid, in the front's child; :attr:`number` and
    :attr:`slot` are its slot's number and descriptor, -1 for none yet."""

    def __init__(self, key: int, call: Call, front: Child, started: float, forked: int) -> None:
        self.number = self.slot = -1
        self._key = key
        self._call = call
        self._front = front
        self._started = started
        self._forked = forked
        self._uid = call.requestor
        self._name = self._uid
        """Whose slots these are: those of all subordinate uids of one user are the same."""

    def come(self) -> bool:
        """Get a slot, and the priority that goes with it.  Returns False if the queue keeper has taken
        the request over, or if it was answered because there is no slot."""
        from lgss_keyring.monitor import slots
        from lgss_keyring.system import subordinate

        first = subordinate.range_of(int(self._uid))
        if first >= 0:
            self._name = f"{first}-subordinate"
        try:
            slots.prepare_folder()
            if self._call.is_machine:
                return self._wait_for_machine()
            if not self._wait():
                return False
        except OSError:
            return True  # /run is read-only, or there are no descriptors: serve it without a slot
        from lgss_keyring.monitor import priority

        nice = priority.of_slot(self.number)
        priority.lower(nice)
        priority.lower_session(nice)
        return True

    def _wait(self) -> bool:
        # The queue keeper must never have a session's credential in reach, so a request that
        # brings one waits in its own process.
        # One keeper serves one uid.
        is_movable = not self._call.has_keyring and self._name == self._uid
        # Offered before a free slot is looked for, because requests that wait already come first.
        if is_movable and self._hand_over():
            return False
        if self._take(self._name, limits.UPCALLS_AT_WORK):
            return True
        if is_movable:
            end = time.monotonic() + limits.KEEPER_SECONDS
            pause = limits.FIRST_PAUSE
            while time.monotonic() < end:
                self._start_keeper()
                time.sleep(pause)
                if self._hand_over():
                    return False
                pause = min(2 * pause, limits.LONGEST_PAUSE)
        from lgss_keyring.monitor import hand_over

        end = hand_over.turn_ends(self._call, self._started)
        return self._wait_here(self._name, limits.UPCALLS_AT_WORK, limits.WAITING_PROCESSES, end)

    def _wait_for_machine(self) -> bool:
        name = f"{self._name}-machine"
        if self._take(name, limits.MACHINE_UPCALLS_AT_WORK):
            return True
        return self._wait_here(
            name,
            limits.MACHINE_UPCALLS_AT_WORK,
            limits.MACHINE_WAITING_PROCESSES,
            self._started + min(self._call.timeout - limits.MARGIN, limits.MACHINE_TURN_SECONDS),
        )

    def _take(self, name: str, limit: int) -> bool:
        from lgss_keyring.monitor import slots

        self.number, self.slot = slots.take(name, limit)
        return self.slot >= 0

    def _wait_here(self, name: str, at_work: int, waiting: int, end: float) -> bool:
        """Wait in this process, until ``end``, for one of the ``at_work`` slots called ``name``.  At
        most ``waiting`` processes may do so."""
        from lgss_keyring.monitor import slots

        _, waiting_slot = slots.take(f"{name}-waiting", waiting)
        if waiting_slot < 0:
            self._give_up(errno.ENOMEM, "too many upcalls of that uid wait already")
            return False
        pause = limits.FIRST_PAUSE
        while not self._take(name, at_work):
            if time.monotonic() + pause > end:
                seconds = f"{time.monotonic() - self._started:.0f}"
                self._give_up(errno.ETIMEDOUT, f"no turn within {seconds} s: {at_work} upcalls work")
                return False
            time.sleep(pause)
            pause = min(2 * pause, limits.LONGEST_PAUSE)
        os.close(waiting_slot)
        return True

    def _give_up(self, number: int, reason: str) -> None:
        from lgss_keyring.monitor import upcall

        failure = upcall.no_turn(number, reason)
        upcall.refuse_turn(self._key, self._call, self._front, self._started, failure)

    def _hand_over(self) -> bool:
        from lgss_keyring.monitor import hand_over

        return hand_over.offer(self._key, self._call, self._started, self._forked)

    def _start_keeper(self) -> None:
        """Start the uid's queue keeper, if there is none that begins or ends just now."""
        from lgss_keyring.monitor import hand_over, slots

        lock = -1
        try:
            lock = slots.take_file(f"{hand_over.path(self._uid)}.lock")
            if lock >= 0 and os.fork() == 0:
                try:
                    from lgss_keyring.monitor import queue_keeper

                    queue_keeper.run(self._uid, lock)
                finally:
                    os._exit(1)
        except OSError:
            pass  # there are no more processes or descriptors: the upcall waits in this process
        finally:
            if lock >= 0:
                os.close(lock)
