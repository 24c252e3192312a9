"""A thread with a session keyring of its own, for tests that make keys."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from tests.support import keyutils


def in_own_session(work: Callable[[], None]) -> None:
    """Do ``work`` in a thread whose session keyring is new; skip the test where keyrings are
    forbidden, as in most containers."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            keyutils.join_session_keyring()
        except keyutils.Error as error:
            if error.errno in (errno.EPERM, errno.ENOSYS):
                failures.append(pytest.skip.Exception("keyrings are forbidden here"))
            else:
                failures.append(error)
            return
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
