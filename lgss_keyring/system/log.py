"""One line for each event, where an administrator looks for it.

A line goes to the journal by its native protocol, with fields to filter by.  Where there is no
journal it goes to syslog (authpriv), and where there is neither, to the kernel's log (/dev/kmsg).
It also goes to a file if the configuration names one.  Neither :mod:`logging` nor :mod:`syslog`
is used: the first costs 10 ms to import, and both block on a daemon that has stopped reading.  A
negotiated context must not wait for that.  Here a send gives up at once, or after :data:`PATIENCE`
when the key has its answer.

What is logged may come from a hostile user (docs/security.md), so every value is reduced to
printable ASCII and cut: no value can forge a line or a field.  And anybody can cause events, so
the lines of one ordinary user are limited (:mod:`.line_limit`).
"""

from __future__ import annotations

import os
import socket
import time

from lgss_keyring.system import limits

JOURNAL = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"
KMSG = "/dev/kmsg"
IDENTIFIER = "lgss_keyring"
FOLDER = "/run/lgss"
"""Where lines are counted, unless ``[krb5] ccache_directory`` says otherwise."""

PATIENCE = limits.LOG_PATIENCE

LEVELS = {"error": 3, "warning": 4, "info": 6, "debug": 7}
"""The names of levels and their priorities of syslog(3)."""
_AUTHPRIV = 10 << 3


def printable(text: str, limit: int = limits.LOG_MESSAGE) -> str:
    """``text`` in printable ASCII, everything else escaped, at most ``limit`` long."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(
            each if " " <= each <= "~" else each.encode("unicode_escape").decode("ascii")
            for each in text[:limit]
        )
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _with_tail(message: str, tail: str) -> str:
    """``message`` with the fields ``tail`` behind a bar; the message keeps none, so that nobody's
    text passes for a field."""
    message = message.replace("|", "\\x7c")
    return f"{message} | {tail}" if tail else message


class Log:
    """Where the events of one request go.  No method raises.

    ``level``
        the least urgent name of :data:`LEVELS` that is still written.
    ``path``
        a file to append to, made with mode 0600; empty: none.  A failure to write it is
        reported once, by journal, syslog or the kernel's log.
    ``journal``, ``syslog``, ``kmsg``
        the sockets and the device of these; the first that is there gets the line.
    ``started``
        the time.monotonic() that events count from; default: now.
    ``folder``
        where the lines of each user are counted, ``[krb5] ccache_directory``.

    ``fields`` stand in every event; :meth:`bind` adds to them.  The field ``requestor`` is the uid
    that asked.  If it is not 0 the lines are limited to
    :data:`~lgss_keyring.system.limits.LOG_LINES` in
    :data:`~lgss_keyring.system.limits.LOG_WINDOW` seconds, together with those of all other
    processes of ours.  The last line that is shown says so, and the first one after that time comes
    with another one before it that tells how many were not.  Events of level error are always
    shown.
    """

    def __init__(
        self,
        level: str = "info",
        path: str = "",
        journal: str = JOURNAL,
        syslog: str = SYSLOG,
        started: float | None = None,
        folder: str = FOLDER,
        kmsg: str = KMSG,
    ) -> None:
        self.level = LEVELS.get(level, 6)
        self.path = path
        self.fields: dict[str, str] = {}
        self.patience = 0.0
        """Seconds that an event may wait for a full journal or syslog."""
        self._journal = journal
        self._syslog = syslog
        self._kmsg = kmsg
        self._file_has_failed = False
        self._started = time.monotonic() if started is None else started
        self._folder = folder

    def bind(self, **fields: object) -> None:
        """Add fields, named without the ``LGSS_`` they get, to all later events."""
        for name, value in fields.items():
            self.fields[name] = str(value)

    def event(self, level: str, message: str, always: bool = False, **fields: object) -> None:
        """Log one line; ``always``: whatever the log's level is.  Its field ``LGSS_MS`` has the
        milliseconds since ``started``."""
        if LEVELS[level] > self.level and not always:
            return
        values = {name: str(value) for name, value in {**self.fields, **fields}.items()}
        requestor = values.get("requestor", "0")
        if level != "error" and requestor.isdecimal() and requestor != "0":
            shown, remark = self._count(int(requestor), values.get("uid") == "0")
            if not shown:
                return
            message = printable(message, limits.LOG_MESSAGE - len(remark)) + remark
        self._write(level, message, values)

    def _count(self, requestor: int, for_machine: bool) -> tuple[bool, str]:
        """Whether one more line of ``requestor`` is shown, and what is added to its text.
        Reports what was hidden before."""
        # Only here, because requests of root need none of it.
        from lgss_keyring.system import line_limit, subordinate

        limit = limits.LOG_LINES if self.level < LEVELS["debug"] else limits.LOG_LINES_AT_DEBUG
        first = subordinate.range_of(requestor)
        counted = first if first >= 0 else requestor
        verdict = line_limit.count(self._folder, counted, for_machine, limit)
        hidden = verdict.hidden
        if hidden is not None:
            whose = "its requests for the machine" if hidden.for_machine else "its requests"
            self._write(
                "warning",
                f"uid {hidden.uid}: at least {hidden.lines} more lines of {whose} are not shown, "
                f"of the {limits.LOG_WINDOW:g} s that began {hidden.age:.0f} s ago",
                {"requestor": str(hidden.uid), "hidden": str(hidden.lines)},
            )
        last = f" (more lines of uid {requestor} in these {limits.LOG_WINDOW:g} s are counted, not shown)"
        return verdict.shown, last if verdict.last else ""

    def _write(self, level: str, message: str, values: dict[str, str]) -> None:
        values["ms"] = f"{(time.monotonic() - self._started) * 1000:.1f}"
        named = {f"LGSS_{name.upper()}": printable(value, limits.LOG_FIELD) for name, value in values.items()}
        message = printable(message)
        self._to_system(LEVELS[level], message, named)
        if not self.path:
            return
        try:
            self._to_file(level, message, named)
        except OSError as error:
            if not self._file_has_failed:
                self._file_has_failed = True
                text = f"cannot write the log file {self.path} ([log] file): {error.strerror}"
                self._to_system(LEVELS["warning"], printable(text), named)

    def _to_system(self, priority: int, message: str, fields: dict[str, str]) -> None:
        if self._to_journal(priority, message, fields):
            return
        # The two others have no fields: the most useful ones go into the text.
        tail = " ".join(
            f"{name}={fields[name]}" for name in ("LGSS_REQUESTOR", "LGSS_ERROR") if name in fields
        )
        if not self._to_syslog(priority, _with_tail(message, tail)):
            self._to_kmsg(priority, message, tail)

    def _to_journal(self, priority: int, message: str, fields: dict[str, str]) -> bool:
        # One FIELD=value a line, as values hold no newline (systemd's "Native
        # Journal Protocol").
        lines = [f"MESSAGE={message}", f"PRIORITY={priority}", f"SYSLOG_IDENTIFIER={IDENTIFIER}"]
        lines += [f"{name}={value}" for name, value in fields.items()]
        return self._send(self._journal, "\n".join(lines) + "\n")

    def _to_syslog(self, priority: int, message: str) -> bool:
        stamp = time.strftime("%b %e %H:%M:%S")
        text = f"<{_AUTHPRIV | priority}>{stamp} {IDENTIFIER}[{os.getpid()}]: {message}"
        return self._send(self._syslog, text)

    def _to_kmsg(self, priority: int, message: str, tail: str) -> None:
        # The kernel's log is small: steps would push out what the kernel has said.
        if priority >= LEVELS["debug"]:
            return
        message = _with_tail(printable(message, limits.LOG_KMSG - len(tail)), tail)
        text = f"<{_AUTHPRIV | priority}>{IDENTIFIER}[{os.getpid()}]: {message}\n"
        try:
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._kmsg, flags)
            try:
                os.write(descriptor, text.encode("ascii"))
            finally:
                os.close(descriptor)
        except OSError:
            pass  # there is no other place where anything could be reported

    def _to_file(self, level: str, message: str, fields: dict[str, str]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
        tail = " ".join(f"{name}={value.replace(' ', '_')}" for name, value in fields.items())
        line = f"{stamp} {IDENTIFIER}[{os.getpid()}] {level}: {_with_tail(message, tail)}\n"
        # Root writes here, so no link is followed.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, 0o600)
        try:
            os.write(descriptor, line.encode("ascii"))
        finally:
            os.close(descriptor)

    def _send(self, path: str, text: str) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(self.patience)
                sender.sendto(text.encode("ascii"), path)
        except (BlockingIOError, TimeoutError):
            return True  # its queue is full: the line is lost, which is better than to wait
        except OSError:
            return False
        return True
