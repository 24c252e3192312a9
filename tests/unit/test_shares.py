"""How lgssd shares out its workers among uids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgss_keyring.daemon import limits
from lgss_keyring.daemon.shares import Shares


def start_all(shares: Shares, uid: int, waiting: set[int] = frozenset()) -> int:  # type: ignore[assignment]
    """Start as many workers of ``uid`` as may be; how many these are."""
    count = 0
    while shares.may_start(uid, waiting):
        shares.started(uid)
        count += 1
    return count


def test_one_uid_has_16() -> None:
    assert start_all(Shares(), 1000) == 16


def test_a_share_is_what_there_is_divided_by_those_who_work_or_wait() -> None:
    for waiting, share in ((3, 12), (5, 8), (11, 4), (47, 1), (200, 1)):
        shares = Shares()
        assert start_all(shares, 1000, set(range(2000, 2000 + waiting))) == share


def test_three_uids_leave_room_for_others_at_once() -> None:
    shares = Shares()
    assert [start_all(shares, uid) for uid in (1000, 1001, 1002)] == [16, 16, 8]
    for uid in range(2000, 2008):
        assert start_all(shares, uid) == 1
    assert not shares.may_start(3000, set())
    assert start_all(shares, 0) == limits.WORKERS - limits.WORKERS_OF_USERS


def test_who_has_more_than_their_share_gets_none_until_it_is_their_turn() -> None:
    shares = Shares()
    for uid in (1000, 1001, 1002):
        start_all(shares, uid)
    for _ in range(8):
        shares.ended(1000)
    # Four uids: 12 for each.
    assert start_all(shares, 1001, {2000}) == 0
    assert start_all(shares, 2000, {1001}) == 8
    assert start_all(shares, 1000, {2000}) == 0


def test_the_uid_whose_turn_is_the_longest_ago_comes_first() -> None:
    shares = Shares()
    for uid in (1000, 1001, 1002, 1000):
        shares.started(uid)
    assert sorted((1000, 1001, 1002, 1003), key=shares.last_turn) == [1003, 1001, 1002, 1000]


def test_turns_of_many_uids_are_forgotten() -> None:
    shares = Shares()
    shares.started(1)
    for uid in range(2, 5000):
        shares.started(uid)
        shares.ended(uid)
    assert shares.last_turn(1) == 1 and len(shares._last_turns) <= limits.TURNS + 1


def test_root_has_what_users_leave_and_more() -> None:
    shares = Shares()
    assert start_all(shares, 0) == limits.WORKERS
    assert not shares.may_start(1000, set())


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=300))
def test_limits_hold_whatever_happens(steps: list[tuple[bool, int]]) -> None:
    shares = Shares()
    working: dict[int, int] = {}
    for starts, uid in steps:
        if starts and shares.may_start(uid, {3, 4}):
            shares.started(uid)
            working[uid] = working.get(uid, 0) + 1
        elif not starts and working.get(uid):
            shares.ended(uid)
            working[uid] -= 1
        users = [count for each, count in working.items() if each]
        assert sum(working.values()) <= limits.WORKERS
        assert sum(users) <= limits.WORKERS_OF_USERS
        assert all(count <= limits.WORKERS_OF_A_USER for count in users)


@pytest.mark.parametrize("greedy", [1, 3, 20])
def test_a_newcomer_is_never_kept_out_by_uids_with_many_workers(greedy: int) -> None:
    shares = Shares()
    for _ in range(50):
        for uid in range(1000, 1000 + greedy):
            if shares.may_start(uid, set()):
                shares.started(uid)
    assert shares.may_start(5000, set(range(1000, 1000 + greedy)))
