"""No other process can look into a worker, whatever uid it has."""

from __future__ import annotations

import ctypes
import os
import resource

import pytest

from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.monitor.worker_process import WorkerProcess
from lgss_keyring.worker import identity
from lgss_keyring.worker.monitor_connection import MonitorConnection

from .workers import wait

PR_GET_DUMPABLE = 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody")
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("uid", [0, 61234])
def test_no_worker_is_dumpable(uid: int, hidden: bool) -> None:
    """The machine's neither: its keys would be in a core dump."""

    def work(connection: MonitorConnection) -> Failed:
        before = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
        if uid:
            identity.become(uid, uid)
        after = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
        return Failed.by(LgssError(f"{before} {after} {resource.getrlimit(resource.RLIMIT_CORE)}"))

    answer = wait(WorkerProcess(work, hidden=hidden))
    assert answer.failure is not None and answer.failure.reason == "0 0 (0, 0)"
