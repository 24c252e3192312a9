"""Whose request is next: root's first, and then one of each uid in turn.

A request waits here until a worker can take it.  A uid has a bounded number at work, so that the
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
    """The requests that wait, in one queue for each :data:`Line`."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Line, deque[Negotiation]] = OrderedDict()
        self._at_work: dict[Line, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def wait(self, request: Negotiation, again: bool = False) -> None:
        """Let ``request`` wait for its turn; ``again``: it had it, and comes before the others."""
        queue = self._waiting.setdefault(request.line, deque())
        (queue.appendleft if again else queue.append)(request)

    def leave(self, request: Negotiation) -> None:
        """``request``, which had its turn, has ended, or waits again."""
        if not request.has_turn:
            return
        request.has_turn = False
        left = self._at_work.get(request.line, 0) - 1
        if left > 0:
            self._at_work[request.line] = left
        else:
            self._at_work.pop(request.line, None)

    def serve(self, start: Callable[[Negotiation], bool], most: int) -> None:
        """Call ``start`` for up to ``most`` requests whose turn it is.  If it returns False that request
        waits on, and with it all of its line.  It sets ``has_turn`` of one that is at work from now on."""
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
                request = queue[0]
                if not request.is_closed and not start(request):
                    stuck.add(line)
                    continue
                queue.popleft()
                if not queue:
                    del self._waiting[line]
                if request.has_turn:
                    self._at_work[line] = self._at_work.get(line, 0) + 1
                    served += 1
                if served >= most:
                    break

    @staticmethod
    def _limit(line: Line) -> int:
        uid, is_machine, _ = line
        if uid == 0:
            return limits.UPCALLS
        return limits.MACHINE_AT_WORK_OF_A_USER if is_machine else limits.AT_WORK_OF_A_USER
