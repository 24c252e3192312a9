"""``make demo``: the main job on this machine, shown to a person.

With ``KEEP=1`` in the environment (``make demo KEEP=1``) the realm, the acceptor, the rule and
the keys stay until Enter is pressed, and the demo says how to go on by hand.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from datetime import datetime
from types import FrameType

from lgss_keyring.formats.callout import parse_callout
from lgss_keyring.formats.crypto import tokens
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.nid import Nid
from lgss_keyring.formats.payload import ContextPayload, Krb5Context, unpack
from tests.support import runs
from tests.support.realm import RealmError
from tests.support.site import USER_UID, Site, Upcalls, machine_callout, user_callout
from tests.support.stage import CHECKOUT, TestingError

END = "::end"
PAYLOAD = "lgss_keyring.cli.payload"

FLAGS = {"r": "root", "m": "a metadata server", "o": "an object server"}
SERVICE_TYPES = {"n": "null", "a": "authentication", "i": "integrity", "p": "privacy", "-": "not given"}
SERVICES = ("MGS: lustre_mgs", "MDS: lustre_mds", "OSS: lustre_oss")


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


def explain(callout: str) -> None:
    """Print callout info field by field."""
    fields = parse_callout(callout)
    meanings = (
        "number of the security object that asks",
        "mechanism",
        "uid that the context is for",
        "its gid",
        "flags: " + (", ".join(FLAGS[flag] for flag in fields.flags) or "none, an ordinary user"),
        "protection: " + SERVICE_TYPES[fields.service_type],
        "Lustre service: " + SERVICES[fields.lustre_service],
        f"NID of the server: {Nid.from_int(fields.target_nid)}",
        "name of the target",
        f"NID of this node: {Nid.from_int(fields.self_nid)}",
        "thread whose namespaces have the credentials; 0: do not look",
        "client's uuid",
    )
    say("Its callout info, field by field:")
    for number, (text, meaning) in enumerate(zip(callout.split(":"), meanings, strict=True)):
        say(f"  {number:2}  {text or '(empty)':38}{meaning}")


def time_line(key: int, started: float, blocked: float, events: list[dict[str, str]]) -> None:
    """Print what happened, in its order; ``started`` in seconds since the epoch, ``blocked``
    in seconds from then on."""
    back = blocked * 1000
    steps = [(0.0, "request_key() is called"), (back, "keyctl is back with the key: the caller goes on")]
    for event in events:
        logged = datetime.strptime(event["time"], "%Y-%m-%dT%H:%M:%S.%f").timestamp() - started
        when = max(logged, 0.0) * 1000
        if event.get("LGSS_STEP") == "instantiated":
            # The child logs this after the front has done it; the caller may be back before.
            steps.insert(1, (min(when, back), "the key is instantiated"))
        else:
            steps.append((when, event["message"].removeprefix(f"key {key}: ")))
    say("\n        ms")
    for when, text in sorted(steps, key=lambda step: step[0]):
        say(f"  {when:8.1f}  {text}")


def show(site: Site, upcalls: Upcalls, shell: Shell, callout: str) -> bool:
    """One identity's part; whether a context was established and found again."""
    description = upcalls.name()
    command = f"keyctl request2 user {shlex.quote(description)} {shlex.quote(callout)} @s"
    say(f"$ {command}")
    started = time.time()
    key = int(shell.run(command))
    blocked = time.time() - started
    say(f"{key}\n")
    explain(callout)
    events = upcalls.events(key, 10)
    time_line(key, started, blocked, events)
    if events[-1].get("LGSS_STEP") != "updated":
        return False

    say("\nThe key in /proc/keys:")
    say(f"  {shell.run(f'grep {key:08x} /proc/keys')}")

    say(f"\nIts payload ($ keyctl pipe {key} | python3 -m {PAYLOAD} -):")
    hexadecimal = shell.run(f"keyctl pipe {key} | od -An -v -tx1 | tr -d ' \\n'; echo")
    printed = subprocess.run(
        [sys.executable, "-m", PAYLOAD, "-"], input=hexadecimal, capture_output=True, text=True, check=True
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


def keep(site: Site, upcalls: Upcalls) -> None:
    """Say how to go on by hand, and wait for Enter."""
    as_user = f"setpriv --reuid {USER_UID} --regid {USER_UID} --clear-groups"
    say(
        f"""
=== all of this stays up until you press Enter here

In another terminal, as root, in {CHECKOUT}:

  export KRB5_CONFIG={site.realm.krb5_conf}
  keyctl session - sh           # a session keyring of your own: its keys end with that shell
  keyctl request2 user {upcalls.name("root")} {machine_callout()} @s
  keyctl show
  keyctl pipe KEY | {sys.executable} -m {PAYLOAD} -
  tail -f {upcalls.log_file}

and as alice, uid {USER_UID}, who has a ticket:

  {as_user} keyctl session - sh
  klist; keyctl request2 user {upcalls.name("alice")} {user_callout()} @s

Names of keys begin with {upcalls.tag} here. docs/by-hand.md tells more."""
    )
    sys.stdin.readline()


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
    runs.begin()
    interruption = Interruption()
    if os.geteuid() != 0:
        say("make demo needs root: it installs a request-key rule, and acts as two users")
        return 1
    for line in runs.remove_dead():
        say(line)
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
                say(f"\n=== {who}\n")
                try:
                    shell = stack.enter_context(closing(Shell(uid)))
                    good = show(site, upcalls, shell, callout)
                except (TestingError, LgssError) as error:
                    say(f"failed: {error}")
                    good = False
                established += good
                failed += not good
            if os.environ.get("KEEP", "") not in ("", "0"):
                keep(site, upcalls)
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
