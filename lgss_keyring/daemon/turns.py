"""Whose upcall is next: root's first, and then one of each uid in turn.

An upcall waits here until a worker can take it.  A uid has a bounded number at work, so that the
others find their workers free; those for the machine's credential that an ordinary user's processes
cause are counted apart, because that user's own may depend on them.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from lgss_keyring.daemon import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.daemon.negotiation import Negotiation

    Line = tuple[int, bool, str]
    """A requestor's uid, whether the machine's credential is asked for, and for root's requests for users
    for which uid: a user whose workers are blocked must not hold up what root asks for others."""


class Turns:
    """The upcalls that wait, in one queue for each requestor."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Line, deque[Negotiation]] = OrderedDict()
        self._at_work: dict[Line, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def wait(self, upcall: Negotiation, again: bool = False) -> None:
        """Let ``upcall`` wait for its turn; ``again``: it had it, and comes before the others."""
        queue = self._waiting.setdefault(upcall.line, deque())
        (queue.appendleft if again else queue.append)(upcall)

    def leave(self, upcall: Negotiation) -> None:
        """``upcall``, which had its turn, has ended, or waits again."""
        if not upcall.has_turn:
            return
        upcall.has_turn = False
        left = self._at_work.get(upcall.line, 0) - 1
        if left > 0:
            self._at_work[upcall.line] = left
        else:
            self._at_work.pop(upcall.line, None)

    def serve(self, start: Callable[[Negotiation], bool], most: int) -> int:
        """Call ``start`` for up to ``most`` upcalls whose turn it is, and return for how many.  If it
        returns False that upcall waits on, and with it all of its line.  It sets ``has_turn`` of one
        that is at work from now on."""
        served = 0
        stuck: set[Line] = set()
        while served < most:
            lines = [line for line in self._waiting if line not in stuck]
            if not lines:
                break
            # One of each line for each time round; root's lines stand before all others.
            for line in sorted(lines, key=lambda line: line[0] != 0):
                queue = self._waiting[line]
                if self._at_work.get(line, 0) >= self._limit(line):
                    stuck.add(line)
                    continue
                upcall = queue[0]
                if not upcall.is_closed and not start(upcall):
                    stuck.add(line)
                    continue
                queue.popleft()
                if not queue:
                    del self._waiting[line]
                if upcall.has_turn:
                    self._at_work[line] = self._at_work.get(line, 0) + 1
                    served += 1
                if served >= most:
                    break
        return served

    @staticmethod
    def _limit(line: Line) -> int:
        uid, is_machine, _ = line
        if uid == 0:
            return limits.UPCALLS
        return limits.MACHINE_AT_WORK_OF_A_USER if is_machine else limits.AT_WORK_OF_A_USER
