"""Loaded under `make coverage` alone, by PYTHONPATH and by a stage's front: begins to measure the
process, and lets its workers write what they have measured before it kills them."""

import os
import signal
import time

import coverage

PATIENCE_SECONDS = 0.3

_kill = os.kill


def _kill_later(pid: int, number: int) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    try:
        while number == signal.SIGKILL and time.monotonic() < end:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
    except ChildProcessError:
        pass  # it is no child of ours, and no worker
    _kill(pid, number)


if "COVERAGE_PROCESS_START" in os.environ:
    coverage.process_startup()
    os.kill = _kill_later
