"""The monitors of lgssd: a process of root's for each request under way.

In a process of its own, a request that waits for a KDC or uses much memory does not harm the
others, and it can be killed.
"""

from __future__ import annotations

import errno
import os
import signal
import time

from lgss_keyring.daemon import limits
from lgss_keyring.formats import payload
from lgss_keyring.formats.errors import Kind
from lgss_keyring.worker import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.daemon.peers import Peer
    from lgss_keyring.daemon.shares import Shares
    from lgss_keyring.system.log import Log


class _Monitor:
    """A process that works on the request ``seq`` of ``peer``; ``deadline`` is of
    time.monotonic()."""

    def __init__(self, peer: Peer, seq: int, deadline: float) -> None:
        self.peer = peer
        self.seq = seq
        self.deadline = deadline
        self.killed = False


class Monitors:
    """All monitors.  One that has not ended after ``time_limit`` seconds is killed, and lgssd
    answers in its place."""

    def __init__(self, time_limit: float, shares: Shares, log: Log) -> None:
        self._time_limit = time_limit
        self._shares = shares
        self._log = log
        self._monitors: dict[int, _Monitor] = {}

    def __len__(self) -> int:
        return len(self._monitors)

    def start(self, peer: Peer, seq: int, work: Callable[[], None]) -> None:
        """Run ``work`` in a new process, which ends with lgssd.  Raises OSError if there can be
        none."""
        server = os.getpid()
        pid = os.fork()
        if pid:
            self._monitors[pid] = _Monitor(peer, seq, time.monotonic() + self._time_limit)
            self._shares.started(peer.uid)
            peer.under_way += 1
            return
        try:
            identity.die_with(server)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            work()
            os._exit(0)
        except Exception as error:
            self._log.event("error", f"{type(error).__name__}: {error}", error=Kind.INTERNAL)
        finally:
            os._exit(1)

    def reap(self, answering: bool = True) -> None:
        """Wait for those that have ended, and kill those whose time is over.  ``answering``: a
        peer whose monitor ended before it answered gets a failure."""
        now = time.monotonic()
        for pid, monitor in list(self._monitors.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._monitors[pid]
                self._shares.ended(monitor.peer.uid)
                monitor.peer.under_way -= 1
                if status and answering and not monitor.killed:
                    code = os.waitstatus_to_exitcode(status)
                    how = f"signal {-code}" if code < 0 else f"exit status {code}"
                    self._fail(monitor, errno.EIO, f"its process ended by {how}")
            elif now > monitor.deadline and not monitor.killed:
                # It may not end at once: a later call waits for it.
                os.kill(pid, signal.SIGKILL)
                monitor.killed = True
                self._fail(monitor, errno.ETIMEDOUT, f"no answer within {self._time_limit:g} s")

    def _fail(self, monitor: _Monitor, number: int, why: str) -> None:
        peer = monitor.peer
        self._log.event("error", f"request {monitor.seq} of uid {peer.uid}: {why}", error=Kind.WORKER_DIED)
        peer.answer(monitor.seq, payload.FailurePayload(number, 0).pack())

    def kill_all(self) -> None:
        """Kill all of them; :meth:`reap` waits for them."""
        for pid in self._monitors:
            os.kill(pid, signal.SIGKILL)


def wait_for(all_have_ended: Callable[[], bool]) -> None:
    """Wait until ``all_have_ended()``, at most :data:`limits.DYING_SECONDS`: a process that waits in
    the kernel, for example for a log file on a dead server, does not end by a signal."""
    end = time.monotonic() + limits.DYING_SECONDS
    while not all_have_ended() and time.monotonic() < end:
        time.sleep(0.005)
