"""lgssd renews the machine's tickets: when the next is due, and a short-lived process for each.

:mod:`lgss_keyring.worker.creds.renewal` says which tickets, when and how.  A KDC may keep a caller waiting,
so nothing of it runs in lgssd's loop.  The loop forks a process that looks at the tickets, renews one
at most, says when the next is due, and ends.  There is one at a time, and it is killed after
``[upcall] timeout``.  A process costs some milliseconds, and looks are rare: when the next renewal is due,
when the folder of the notes of uses has changed, and every :data:`~.limits.RENEWAL_LOOK_SECONDS`.
"""

from __future__ import annotations

import json
import os
import signal
import time

from lgss_keyring.daemon import forked, limits
from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.system import keyrings
from lgss_keyring.worker import krb5_library
from lgss_keyring.worker.creds import renewal, uses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.formats.config import Config
    from lgss_keyring.system.log import Log


class Renewals:
    """The renewals of one lgssd.  Its loop calls :meth:`turn` after each round, and waits no longer than
    :attr:`timeout`."""

    def __init__(self, settings: Callable[[], Config], log: Log, in_child: Callable[[], None]) -> None:
        """``settings()`` gives the configuration of the moment; ``in_child()`` closes, in a process that was
        forked, what this one has open."""
        self._settings = settings
        self._log = log
        self._in_child = in_child
        self._since = time.time()
        self._seed = renewal.boot_id()
        self._failures: dict[str, renewal.Failure] = {}
        self._next = 0.0
        """When a process is started next; this and the other times are of time.monotonic()."""
        self._looked_at_notes = 0.0
        self._has_turned = False
        self._notes: tuple[int, int] | None = None
        self._has_tickets = False
        """Whether any are in use, as far as was seen."""
        self._pid = 0
        self._results = -1
        self._deadline = 0.0
        self._is_killed = False

    @property
    def has_process(self) -> bool:
        """Whether there is one that has not been waited for."""
        return self._pid != 0

    @property
    def has_tickets(self) -> bool:
        """Whether tickets in use wait for their renewal: lgssd should stay, then."""
        return self.has_process or self._has_tickets

    @property
    def timeout(self) -> float:
        """Seconds until :meth:`turn` has to be called again, whatever comes."""
        now = time.monotonic()
        if self._pid:
            return max(0.0, min(self._deadline - now, 1.0)) if not self._is_killed else 1.0
        notes = self._looked_at_notes + (
            limits.NOTES_SOON_SECONDS if self._has_turned else limits.NOTES_SECONDS
        )
        return max(0.0, min(self._next, notes) - now)

    def turn(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if self._pid:
            self._look_at_process(now)
        elif now >= self._next or self._notes_have_changed(now):
            self._start(now)

    def _notes_have_changed(self, now: float) -> bool:
        if now < self._looked_at_notes + limits.NOTES_SOON_SECONDS:
            self._has_turned = True
            return False
        before, self._notes = self._notes, self._look_at_notes()
        self._looked_at_notes, self._has_turned = now, False
        return self._notes != before

    def _look_at_notes(self) -> tuple[int, int] | None:
        try:
            status = os.lstat(f"{self._settings().krb5.ccache_directory}/{uses.FOLDER}")
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _start(self, now: float) -> None:
        settings = self._settings()
        self._next = now + limits.RENEWAL_LOOK_SECONDS
        # Before the look, so that what comes meanwhile is seen as a change.
        self._notes = self._look_at_notes()
        self._looked_at_notes, self._has_turned, self._has_tickets = now, False, False
        if self._notes is None:
            return
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        lgssd = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(reading)
            os.close(writing)
            self._log.event("warning", f"no ticket is renewed now: cannot fork: {error.strerror}")
            return
        if pid == 0:
            try:
                os.close(reading)
                forked.begin(lgssd, settings, self._in_child, writing)
                # A user's worker, which lgssd has forked too, may have linked a keyring into lgssd's own.
                keyrings.leave_session()
                self._work(writing, settings)
                os._exit(0)
            except Exception as error:
                self._log.event("error", f"{type(error).__name__}: {error}", error=Kind.INTERNAL)
            finally:
                os._exit(1)
        os.close(writing)
        self._pid, self._results, self._is_killed = pid, reading, False
        self._deadline = now + settings.upcall.timeout

    # In the process that was forked.

    def _work(self, writing: int, settings: Config) -> None:
        """Renew the ticket that is due, if one is, and say what is next."""

        def report(level: str, text: str) -> None:
            self._log.event(level, text, uid=0)

        def say(next_moment: float | None, due: renewal.Due, failure: renewal.Failure | None) -> None:
            known = failure and (failure.end, failure.count, failure.not_before, failure.is_told)
            message = {"next": next_moment, "path": due.file.path, "failure": known}
            os.write(writing, json.dumps(message).encode() + b"\n")

        try:
            tickets = renewal.KeptTickets(settings.krb5, self._seed, self._since, report)
        except LgssError as error:
            report("debug", f"no ticket is renewed: {error.reason}")
            return
        now = time.time()
        planned = renewal.next_of(tickets.due(now), self._failures)
        if planned is None:
            return
        when, due = planned
        before = renewal.failure_of(due, self._failures)
        if when > now:
            say(when, due, before)
            return
        # What is to be remembered if this process is killed.
        failure: renewal.Failure | None = renewal.after_failure(due, before, now, self._seed, False)
        say(0.0, due, failure)
        try:
            tickets.renew(due, time.monotonic() + settings.upcall.timeout / 2)
        except LgssError as error:
            is_refused = error.kind in renewal.REFUSALS
            failure = renewal.after_failure(due, before, time.time(), self._seed, is_refused)
            self._tell(settings, due, before, failure, error)
        else:
            failure = None
            report("debug", f"{due} has been renewed, {due.end - now:.0f} s before its end")
        say(0.0, due, failure)

    def _tell(
        self,
        settings: Config,
        due: renewal.Due,
        before: renewal.Failure | None,
        failure: renewal.Failure,
        error: LgssError,
    ) -> None:
        """Log that a renewal has failed: a warning once, when upcalls will soon have to wait for the KDC."""
        is_first = failure.is_told and not (before and before.is_told)
        pause = failure.not_before - time.time()
        text = f"{due} cannot be renewed: {error.reason}; trying again in {pause:.0f} s"
        if is_first:
            hint = Failed.by(error).located(settings).hint or "see the KDC's log"
            end = f"it ends {krb5_library.shown_time(due.end)}, and " if due.end else ""
            text += f"; {end}contexts wait for the KDC: {hint}"
        self._log.event("warning" if is_first else "info", text, uid=0, error=error.kind)

    # In lgssd again.

    def _look_at_process(self, now: float) -> None:
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._pid = 0
            self._take(status, now)
        elif now >= self._deadline and not self._is_killed:
            # It may not end at once: a later turn waits for it.
            os.kill(self._pid, signal.SIGKILL)
            self._is_killed = True

    def _take(self, status: int, now: float) -> None:
        """Take what the process has said."""
        try:
            said = os.read(self._results, limits.RENEWAL_MESSAGES_BYTES).splitlines()
        except BlockingIOError:
            said = []
        os.close(self._results)
        self._results = -1
        if not said:
            return  # nothing is in use, or it could not look
        message = json.loads(said[-1])
        self._has_tickets = True
        old = time.time() - limits.FAILURE_FORGOTTEN_SECONDS
        for path in [each for each, failure in self._failures.items() if failure.not_before < old]:
            del self._failures[path]
        path, failure = message["path"], message["failure"]
        if failure:
            self._failures[path] = renewal.Failure(*failure)
        else:
            self._failures.pop(path, None)
        self._next = min(self._next, now + max(0.0, message["next"] - time.time()))
        if status and self._is_killed:
            limit = self._settings().upcall.timeout
            text = f"the renewal of {path} was ended after {limit} s: KDC or name service do not answer"
            level = "warning" if failure and failure[2] else "info"
            self._log.event(level, text, uid=0, error=Kind.KDC_UNREACHABLE)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
            os.close(self._results)
