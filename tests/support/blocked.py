"""How long request_key(2) blocks its callers, interleaved, so that whatever else the machine does
meets all of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tests.support.requestor import Requestor
from tests.support.site import Site, Upcalls, machine_callout, user_callout
from tests.support.stage import CHECKOUT, Stage

BARE = "a bare Python handler"
ROOT_MACHINE = "root, the machine's credential"
ROOT_FOR_USER = "root, for a user"
USER = "a user"


class Callers:
    """A context manager with a rule for our front and one for bench/bare.py.

    ``other`` is the uid of a user with a good ticket; ``program`` another front than the site's.
    """

    def __init__(self, site: Site, other: int, **rule: Any) -> None:
        self._site, self._other, self._rule = site, other, rule
        self._stack = ExitStack()

    def __enter__(self) -> Callers:
        bare = self._site.stage.directory / "bare.py"
        Stage.write_front(CHECKOUT / "bench" / "bare.py", bare)
        ours = self._stack.enter_context(self._site.upcalls(**self._rule))
        theirs = self._stack.enter_context(self._site.upcalls(program=bare, arguments="%o %k"))
        self._requests: dict[str, tuple[int, Upcalls, Callable[[], str], float]] = {
            BARE: (0, theirs, lambda: "x", 0.0),
            ROOT_MACHINE: (0, ours, machine_callout, 10.0),
            ROOT_FOR_USER: (0, ours, lambda: user_callout(self._other), 10.0),
            USER: (self._other, ours, lambda: user_callout(self._other), 10.0),
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, rounds: int) -> dict[str, list[float]]:
        """Seconds that each caller was blocked, for each of ``rounds``."""
        figures: dict[str, list[float]] = {name: [] for name in self._requests}
        for _ in range(rounds):
            for name, (uid, upcalls, callout, wait) in self._requests.items():
                # A requestor for each: its keys go with it, or they would use up the quota.
                with Requestor(uid) as requestor:
                    answer = requestor.ask(upcalls.name(), callout(), wait=wait)
                if answer.error or (wait and answer.updated is None):
                    raise AssertionError(f"{name}: {answer}")
                figures[name].append(answer.blocked)
        return figures
