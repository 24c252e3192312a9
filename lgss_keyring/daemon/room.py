"""How many workers there may be, and who has to make room for one more."""

from __future__ import annotations

from lgss_keyring.daemon import limits
from lgss_keyring.system import subordinate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class FullError(Exception):
    """Others have all the workers that there may be."""


def rivals(owner: int, owners: Sequence[int]) -> Callable[[int], bool] | None:
    """Whose idle worker has to end before ``owner`` may have one more, as a test of a worker's owner; None
    if there is room.  ``owners``: that of each worker that there is."""
    if owner <= 0:
        return None
    share = subordinate.range_of(owner)
    if share >= 0:
        of_share = subordinate.of_range(share, owners)
        if len(of_share) >= limits.WORKERS_OF_SUBORDINATES:
            return lambda other: other in of_share
    has_some = owner in owners
    if len(owners) >= limits.RESIDENT_WORKERS - (limits.WORKERS_FOR_NEWCOMERS if has_some else 0):
        return lambda other: True
    return None
