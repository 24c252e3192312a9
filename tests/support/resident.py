"""A resident worker and lgssd's end of it, for tests."""

from __future__ import annotations

import mmap
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lgss_keyring.formats import callout, config, job_messages, worker_messages
from lgss_keyring.formats.job_messages import Page
from lgss_keyring.formats.outcome import Answer
from lgss_keyring.worker import resident

Event = tuple[int, Any]


def arguments(text: str, uid: int, key_type: str = "user") -> list[str]:
    """The ten arguments of an upcall with callout info ``text``."""
    description = "lgss:1" if key_type == "user" else "1000@2a"
    return ["create", "1", key_type, description, text, str(uid), str(uid), "0", "0", "0"]


class ResidentWorker:
    """A forked worker; a context manager that ends it."""

    def __init__(
        self, first: Sequence[str], settings: config.Config, level: str = "error", uid: int | None = None
    ) -> None:
        request = callout.parse_request(first)
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.page = Page(mmap.mmap(-1, Page.SIZE))
        self.pid = os.fork()
        if self.pid == 0:
            own.close()
            whose = request.uid if uid is None else uid
            resident.run(its, self.page, whose, request.is_machine, request, settings, level)
        its.close()
        self.socket = own
        self._numbers = 0
        self.group = self._first()

    def _first(self) -> tuple[int, bool] | None:
        message = self.receive()
        return job_messages.unpack_group(message) if message else None

    def receive(self, seconds: float = 20) -> bytes:
        """The next message; empty if the worker has ended.  Raises TimeoutError."""
        if not select.select([self.socket], [], [], seconds)[0]:
            raise TimeoutError(self.page.look())
        try:
            return self.socket.recv(1 << 15)
        except ConnectionResetError:
            return b""

    def send(self, message: bytes, number: int) -> None:
        """Send a message for job ``number``."""
        self.socket.send(job_messages.with_number(number, message))

    def begin(self, words: Sequence[str], seconds: float = 30, realm: str | None = None) -> int:
        """Send a job; returns its number."""
        self._numbers += 1
        self.socket.send(job_messages.pack_job(self._numbers, seconds, realm, words))
        return self._numbers

    def event(self, seconds: float = 20) -> Event:
        """The next message as the job's number and what worker_messages makes of it."""
        message = self.receive(seconds)
        assert message, f"the worker has ended: {self.page.look()[2]}"
        number, rest = job_messages.split(message)
        return number, worker_messages.unpack(rest)

    def answer(self, number: int, seconds: float = 20) -> Answer:
        """The answer of job ``number``; other messages are passed over."""
        while True:
            found, event = self.event(seconds)
            if found == number and isinstance(event, Answer):
                return event

    def ask(self, words: Sequence[str]) -> Answer:
        """The answer to one request."""
        return self.answer(self.begin(words))

    def cpu(self) -> float:
        """Seconds of CPU time that it has used."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> list[str]:
        """Its open descriptors."""
        return sorted(os.listdir(f"/proc/{self.pid}/fd"), key=int)

    def memory(self) -> int:
        """KiB of its own memory.  Not its proportional set size (PSS), which grows when the process that
        forked it writes to a page that both have."""
        with open(f"/proc/{self.pid}/smaps_rollup", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))

    def wait(self, seconds: float = 10) -> int:
        """Its exit code, once it has ended."""
        end = time.monotonic() + seconds
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                raise TimeoutError(self.page.look())
            time.sleep(0.01)
        self.pid = 0
        return os.waitstatus_to_exitcode(found[1])

    def close(self) -> None:
        """End it."""
        self.socket.close()
        if self.pid:
            self.wait()

    def __enter__(self) -> ResidentWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def settings_of(site: Any, sections: Mapping[str, Mapping[str, Any]] | None = None) -> config.Config:
    """The site's configuration, with ``sections`` over it."""
    merged: dict[str, dict[str, Any]] = {
        "krb5": {
            "config": str(site.realm.krb5_conf),
            "keytab": str(site.population.machine_keytab),
            "ccache_directory": str(site.directory / "machine"),
        },
        "rpcsec_gss": {
            "port": site.acceptor.port,
            "connect_timeout": site.limit,
            "reply_timeout": site.limit,
        },
        "hosts": {"127.0.0.1": "localhost"},
    }
    for section, values in (sections or {}).items():
        merged.setdefault(section, {}).update(values)
    return config.checked(merged, "/nonexistent/lgss_keyring.toml")
