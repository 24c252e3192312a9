"""``make demo``: the main job on this machine, shown to a person."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from types import FrameType

from lgss_keyring.formats.crypto import tokens
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.payload import ContextPayload, Krb5Context, unpack
from tests.support.realm import RealmError
from tests.support.site import USER_UID, Site, Upcalls, machine_callout, user_callout
from tests.support.stage import TestingError

END = "::end"


class Shell:
    """A shell in a session keyring of its own, as some uid; commands by lines."""

    def __init__(self, uid: int) -> None:
        self._process = subprocess.Popen(
            ["keyctl", "session", "-", "/bin/sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=uid,
            group=uid,
            extra_groups=[],
            cwd="/",
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """The command's output; raises TestingError if it fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{command}; echo {END} $?\n")
        self._process.stdin.flush()
        output: list[str] = []
        for line in self._process.stdout:
            if line.startswith(END):
                if line.split()[1] != "0":
                    raise TestingError(f"{command}: {''.join(output).strip()}")
                return "".join(output).strip()
            if not line.startswith("Joined session keyring"):
                output.append(line)
        raise TestingError("the shell has ended")

    def close(self) -> None:
        """End the shell, and with it its session keyring and keys."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def say(text: str = "") -> None:
    """Print at once: a person is watching."""
    print(text, flush=True)


def show(site: Site, upcalls: Upcalls, who: str, uid: int, callout: str) -> bool:
    """One identity's part; whether a context was established and found again."""
    say(f"\n=== {who}\n")
    shell = Shell(uid)
    try:
        description = upcalls.name()
        command = f"keyctl request2 user {shlex.quote(description)} {shlex.quote(callout)} @s"
        say(f"$ {command}")
        started = time.time()
        key = int(shell.run(command))
        blocked = time.time() - started
        say(f"{key}")
        events = upcalls.events(key, 10)
        say("\n        ms")
        steps = [
            (0.0, "request_key() is called"),
            (blocked * 1000, "keyctl is back with the key: the caller goes on"),
        ]
        for event in events:
            when = datetime.strptime(event["time"], "%Y-%m-%dT%H:%M:%S.%f").timestamp() - started
            steps.append((max(when, 0.0) * 1000, event["message"].removeprefix(f"key {key}: ")))
        for when, text in sorted(steps, key=lambda step: step[0]):
            say(f"  {when:8.1f}  {text}")
        if events[-1].get("LGSS_STEP") != "updated":
            return False

        say("\nThe key in /proc/keys:")
        say(f"  {shell.run(f'grep {key:08x} /proc/keys')}")

        say(f"\nIts payload ($ keyctl pipe {key} | python3 -m lgss_keyring.cli.payload -):")
        hexadecimal = shell.run(f"keyctl pipe {key} | od -An -v -tx1 | tr -d ' \\n'; echo")
        printed = subprocess.run(
            [sys.executable, "-m", "lgss_keyring.cli.payload", "-"],
            input=hexadecimal,
            capture_output=True,
            text=True,
            check=True,
        )
        say("".join(f"  {line}\n" for line in printed.stdout.splitlines()).rstrip("\n"))
        prove(site, bytes.fromhex(hexadecimal))

        say("\nOnce more:")
        before = len(upcalls.log())
        started = time.time()
        again = int(shell.run(command))
        took = (time.time() - started) * 1000
        time.sleep(0.2)
        upcall_made = len(upcalls.log()) != before
        say(
            f"  the same key {again}, after {took:.1f} ms, "
            + ("AFTER AN UPCALL" if upcall_made else "without an upcall")
        )
        return again == key and not upcall_made
    finally:
        shell.close()


def prove(site: Site, data: bytes) -> None:
    """The acceptor's keys are those of the payload: a MIC by one, checked by the other."""
    payload = unpack(data)
    assert isinstance(payload, ContextPayload)
    ours = Krb5Context.unpack(payload.context)
    (theirs,) = (
        Krb5Context.unpack(bytes.fromhex(context["context"]))
        for context in site.acceptor.contexts()
        if context["handle"] == payload.handle.hex()
    )
    mic = tokens.make_mic(ours.kc, ours.enctype, [b"hello"], sequence=ours.send_seq, acceptor=False)
    tokens.verify_mic(theirs.kc, theirs.enctype, [b"hello"], mic, acceptor=False)
    say("  a MIC made with this payload verifies with the acceptor's own context")


class Interruption:
    """SIGINT and SIGTERM as KeyboardInterrupt, but only where one does no harm.

    Raised in the middle of making or removing something, it would leave the thing
    behind that no variable names yet.
    """

    def __init__(self) -> None:
        self._pending = False
        self._allowed = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
        if self._allowed:
            self._allowed = False  # once: the clean-up that follows is not to be interrupted
            raise KeyboardInterrupt

    def allow(self, allowed: bool) -> None:
        """From now on raise at once, what came before included, or only remember."""
        self._allowed = allowed
        if allowed and self._pending:
            raise KeyboardInterrupt


def main() -> int:
    """Run the demo; the exit status."""
    interruption = Interruption()
    established = failed = 0
    with ExitStack() as stack:
        try:
            started = time.monotonic()
            site = stack.enter_context(Site())
            site.kinit()
            upcalls = stack.enter_context(site.upcalls())
            interruption.allow(True)
            say(f"A realm, an acceptor and a rule are set up ({time.monotonic() - started:.1f} s).")
            say(f"The rule, in {upcalls.rule.path}:")
            say(f"  {upcalls.rule.path.read_text().splitlines()[-1]}")
            for who, uid, callout in (
                ("root, with the machine's keytab (flags r)", 0, machine_callout()),
                (f"an ordinary user (uid {USER_UID}), with a ticket", USER_UID, user_callout()),
            ):
                try:
                    good = show(site, upcalls, who, uid, callout)
                except (TestingError, LgssError) as error:
                    say(f"failed: {error}")
                    good = False
                established += good
                failed += not good
        except KeyboardInterrupt:
            say("\ninterrupted; cleaning up")
            failed = 2 - established
        except (TestingError, RealmError, OSError) as error:
            say(f"demo: {error}")
            failed = 2 - established
        finally:
            interruption.allow(False)
    say(f"\ndemo: {established} established, {failed} failed")
    return 0 if established == 2 else 1


if __name__ == "__main__":
    sys.exit(main())
