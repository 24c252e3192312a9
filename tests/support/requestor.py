"""Processes that call request_key(2), as root or as anybody, and watch their key."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lgss_keyring.front import keyctl
from tests.support import keyutils

PLACEHOLDER = b"\0"
patience = 5.0
"""Seconds that a requestor waits for its key's answer, unless told otherwise."""


@dataclass(frozen=True)
class Answer:
    """What one request_key(2) came to; times in seconds since the call.

    ``error``: errno of request_key itself, or of reading the key (``read_error``)
    when it ended before an answer came.  ``payload``: hex of the last one read.
    """

    description: str
    key: int = 0
    error: int = 0
    blocked: float = 0.0
    updated: float | None = None
    payload: str = ""
    read_error: int = 0

    @property
    def data(self) -> bytes:
        """The payload's bytes."""
        return bytes.fromhex(self.payload)


def ask(description: str, callout: str | bytes, wait: float, key_type: str = "user") -> Answer:
    """request_key(2) in this process, into its session keyring; then up to ``wait``
    seconds until the payload is no placeholder any more."""
    raw = callout.encode() if isinstance(callout, str) else callout
    started = time.monotonic()
    try:
        key = keyutils.request_key(
            key_type.encode(), description.encode(), raw, keyctl.KEY_SPEC_SESSION_KEYRING
        )
    except OSError as error:
        return Answer(description, error=error.errno or 0, blocked=time.monotonic() - started)
    blocked = time.monotonic() - started
    data, read_error, updated = b"", 0, None
    while True:
        try:
            data = keyutils.read_key(key)
        except keyutils.Error as error:
            read_error = int(error.args[0])
            break
        if data != PLACEHOLDER:
            updated = time.monotonic() - started
            break
        waited = time.monotonic() - started
        if waited > wait:
            break
        # To the millisecond, or to 5 %: hundreds of requestors that poll each
        # millisecond are all that a slow machine does. A failure lives for 1 s at least.
        time.sleep(min(max(0.001, waited / 20), 0.5))
    return Answer(description, int(key), 0, blocked, updated, data.hex(), read_error)


class Requestor:
    """A process of its own for requests, with a fresh session keyring.

    Started at once; :meth:`ask` may be called again and again, and the keys stay
    until :meth:`close`, when the session keyring goes with its only process.
    """

    def __init__(self, uid: int = 0, gid: int | None = None) -> None:
        self.uid = uid
        command_in, self._command = os.pipe()
        self._answer, answer_out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._command)
                os.close(self._answer)
                # A collection would write to, and so copy, every page of our parent's:
                # 40 MB for each of 200 requestors.
                gc.disable()
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                os.setgroups([])
                os.setresgid(*[uid if gid is None else gid] * 3)
                os.setresuid(uid, uid, uid)
                # After the change of ids: the keyring is to be that user's.
                keyutils.join_session_keyring()
                _loop(command_in, answer_out)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(command_in)
        os.close(answer_out)
        self._answers = os.fdopen(self._answer, "rb")

    def start(self, description: str, callout: str | bytes, wait: float | None = None, **extra: Any) -> None:
        """Let the process ask, without waiting for it; :meth:`result` waits."""
        raw = callout.encode() if isinstance(callout, str) else callout
        command = {"description": description, "callout": raw.hex(), **extra}
        command["wait"] = patience if wait is None else wait
        os.write(self._command, json.dumps(command).encode() + b"\n")

    def result(self) -> Answer:
        """The answer to the oldest :meth:`start` that has none yet."""
        return Answer(**self._line())

    def _line(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the requestor of uid {self.uid} has died")
        result: dict[str, Any] = json.loads(line)
        return result

    def ask(self, description: str, callout: str | bytes, wait: float | None = None, **extra: Any) -> Answer:
        """:func:`ask` in the process."""
        self.start(description, callout, wait, **extra)
        return self.result()

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Run a program in the process's session, as its uid; raises RuntimeError with
        its output if it fails."""
        words = {"run": list(command), "environment": dict(environment or {})}
        os.write(self._command, json.dumps(words).encode() + b"\n")
        result = self._line()
        if result["status"]:
            raise RuntimeError(f"{command}: {result['output']}")

    def fsuid(self, uid: int) -> None:
        """Let the process be ``uid`` for files and keys alone (setfsuid(2))."""
        os.write(self._command, json.dumps({"fsuid": uid}).encode() + b"\n")
        self._line()

    def close(self) -> None:
        """End the process and wait for it."""
        if self.pid:
            os.close(self._command)
            self._answers.close()
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.waitpid(self.pid, 0)
            self.pid = 0

    def __enter__(self) -> Requestor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _loop(commands: int, answers: int) -> None:
    with os.fdopen(commands, "rb") as lines:
        for line in lines:
            command = json.loads(line)
            if "fsuid" in command:
                ctypes.CDLL(None).setfsuid(command["fsuid"])
                os.write(answers, b"{}\n")
                continue
            if "run" in command:
                done = subprocess.run(
                    command["run"],
                    env={**os.environ, **command["environment"]},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                said = {"status": done.returncode, "output": done.stdout}
                os.write(answers, json.dumps(said).encode() + b"\n")
                continue
            callout = bytes.fromhex(command.pop("callout"))
            answer = ask(callout=callout, **command)
            os.write(answers, json.dumps(asdict(answer)).encode() + b"\n")
