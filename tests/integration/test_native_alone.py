"""What the native front leaves to lgss_keyring.py."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import native
from tests.support.fake_lgssd import Connection
from tests.support.native import StandIn
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, machine_callout, user_callout
from tests.support.stage import Rule

from .native_front import GO, PULSE, YOURSELF, alone, failed, numbers, served
from .native_front import folder as folder
from .native_front import root as root
from .native_front import stand_in as stand_in
from .native_front import user as user
from .waiting import pace, within

pytestmark = pytest.mark.skipif(not native.has_compiler(), reason="no C compiler here")


@pytest.mark.parametrize(
    ("last", "is_before_word"),
    [
        (YOURSELF, True),
        (b"", True),
        (b"?", True),
        (YOURSELF, False),
        (b"", False),
        (b"A", False),
        (b"T/", False),
    ],
)
def test_lgssd_that_leaves_it_to_the_child(
    stand_in: StandIn, user: Requestor, last: bytes, is_before_word: bool
) -> None:
    """By Y, by the end of the connection, or by nonsense."""

    def script(lgssd: Connection) -> None:
        if not is_before_word:
            lgssd.say(GO)
            time.sleep(0.1)
        if last:
            lgssd.say(last)

    with served(stand_in, script, "--timeout 20") as name:
        answer = user.ask(name(), user_callout(), wait=0)
        assert answer.error == 0 and answer.blocked < pace(0.5)
    words, pipe = alone(stand_in)
    assert pipe == "1" and words[2:4] == ["--timeout", "20"] and words[-9] == str(answer.key)
    started = int(words[words.index("--instantiated") + 1].split(":")[1])
    assert 0 <= time.monotonic() * 1000 - started < pace(3000)


def test_silent_lgssd(stand_in: StandIn, user: Requestor) -> None:
    def script(lgssd: Connection) -> None:
        lgssd.say(GO)
        time.sleep(1)
        lgssd.say(PULSE)
        assert lgssd.has_ended(3)

    with served(stand_in, script) as name:
        started = time.monotonic()
        user.ask(name(), user_callout(), wait=0)
        assert alone(stand_in)[1] == "1"
        assert 2.4 < time.monotonic() - started < pace(4)


@pytest.mark.parametrize("last", [YOURSELF, b"", None], ids=["Y", "end", "silence"])
def test_machine_that_lgssd_does_not_serve(stand_in: StandIn, root: Requestor, last: bytes | None) -> None:
    """The front becomes lgss_keyring.py, with nothing done yet: its child is gone."""

    def script(lgssd: Connection) -> None:
        if last is None:
            assert lgssd.has_ended(5)
        elif last:
            lgssd.say(last)

    with served(stand_in, script) as name:
        answer = root.ask(name(), machine_callout())
        assert answer.error == errno.ENOKEY  # the stand-in does nothing
        assert answer.blocked < pace(3)
        assert alone(stand_in)[1] is None


def test_killed_front(stand_in: StandIn, user: Requestor) -> None:
    """The child finds out by itself what came of the key: lgss_keyring.py does."""

    def script(lgssd: Connection) -> None:
        # The front and its two children.
        assert within(5, lambda: len(stand_in.pids()) == 3)
        os.kill(stand_in.pids()[0], signal.SIGKILL)
        time.sleep(0.3)

    with served(stand_in, script) as name:
        assert user.ask(name(), user_callout()).error == errno.ENOKEY
    assert alone(stand_in)[1] == ""


def unheard(lgssd: Connection) -> None:
    raise AssertionError("lgssd was called")


@contextmanager
def rule(stand_in: StandIn, options: str = "", **more: str) -> Iterator[Callable[[], str]]:
    """A rule without a lgssd; gives a function that makes the description of a key."""
    tag = f"lgss:{os.getpid()}.alone{next(numbers)}:"
    words = f"--lgssd {stand_in.directory}/nobody.sock {options}".strip()
    with Rule(f"{tag}*", stand_in.program, words, **more):
        yield lambda: f"{tag}{next(numbers)}"


@pytest.mark.parametrize("uid", [USER_UID, 0])
def test_without_lgssd_the_child_becomes_lgss_keyring_py(stand_in: StandIn, uid: int) -> None:
    with rule(stand_in) as name, Requestor(uid) as requestor:
        answer = requestor.ask(name(), user_callout(), wait=0)
        assert answer.error == 0 and answer.blocked < pace(0.5)
    words, pipe = alone(stand_in)
    assert pipe == "1" and words[-9] == str(answer.key)


def test_machine_without_lgssd(stand_in: StandIn, root: Requestor) -> None:
    with rule(stand_in) as name:
        assert root.ask(name(), machine_callout()).error == errno.ENOKEY
    assert alone(stand_in)[1] is None


@pytest.mark.parametrize("options", ["", "-R A.REALM --config /etc/of/lgss.toml"])
def test_note_of_a_failure(stand_in: StandIn, user: Requestor, options: str) -> None:
    """Whether it holds is not for the native front to say."""
    note = Path(f"/run/lgss/failed-{USER_UID}{'-A.REALM-%etc%of%lgss.toml' if options else ''}")
    note.parent.mkdir(mode=0o700, exist_ok=True)
    note.touch()
    try:
        with rule(stand_in, options) as name:
            assert user.ask(name(), user_callout()).error == errno.ENOKEY
        assert alone(stand_in)[1] is None
    finally:
        note.unlink()


def test_user_with_a_queue(stand_in: StandIn, user: Requestor) -> None:
    queue = Path(f"/run/lgss/slots/{USER_UID}.queue")
    queue.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    queue.touch()
    try:
        with rule(stand_in) as name:
            assert user.ask(name(), user_callout()).error == errno.ENOKEY
        assert alone(stand_in)[1] is None
    finally:
        queue.unlink()


def test_credentials_in_a_keyring(stand_in: StandIn, user: Requestor) -> None:
    """They are linked by lgss_keyring.py, and lgssd is not asked."""
    user.run(["keyctl", "newring", "_krb_x", "@s"])
    with served(stand_in, unheard) as name:
        assert user.ask(name(), user_callout()).error == errno.ENOKEY
    ((words, pipe),) = stand_in.calls()
    assert pipe is None and words[2] == "create"


def ask_elsewhere(root: Requestor, description: str, *become: str) -> None:
    command = ["unshare", "--mount", *become, "keyctl", "request2", "user", description, user_callout(), "@s"]
    with pytest.raises(RuntimeError, match="Required key not available"):
        root.run(command)


def test_requestor_in_another_mount_namespace(stand_in: StandIn, root: Requestor) -> None:
    """What lgssd has begun comes to nothing."""

    def script(lgssd: Connection) -> None:
        assert lgssd.has_ended()

    with served(stand_in, script) as name:
        ask_elsewhere(root, name(), "setpriv", f"--reuid={USER_UID}", "--clear-groups")
    ((words, pipe),) = stand_in.calls()
    assert pipe is None and words[2] == "create"


def test_root_in_another_mount_namespace_is_not_heard_by_lgssd(stand_in: StandIn, root: Requestor) -> None:
    """Its request could be for the machine, or for anybody, and lgssd would note its failure about those."""
    with served(stand_in, unheard) as name:
        ask_elsewhere(root, name())
    ((words, pipe),) = stand_in.calls()
    assert pipe is None and words[2] == "create"


@pytest.mark.parametrize("is_link", [False, True])
def test_the_words_file_is_not_waited_for(stand_in: StandIn, user: Requestor, is_link: bool) -> None:
    """Where root's rule names a socket in a folder of others."""

    def script(lgssd: Connection) -> None:
        assert lgssd.has_ended()

    with served(stand_in, script, "--timeout 4") as name:
        # By its number: others may be removed at this moment.
        word = max(stand_in.directory.glob("*.sock.word"), key=lambda path: int(path.name.partition(".")[0]))
        word.unlink()
        place = word.with_suffix(".fifo") if is_link else word
        os.mkfifo(place)
        if is_link:
            word.symlink_to(place)
        try:
            answer = user.ask(name(), user_callout(), wait=0)
        finally:
            place.unlink()
    assert answer.error == 0 and answer.blocked < pace(0.5)
    alone(stand_in)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["--nonsense", "x", "create"],
        ["-R"],
        ["-R", "", *"abcdefghij"],
        ["--timeout", "1", *"abcdefghij"],
        ["negate", "5", "user", "lgss:x", user_callout(), *"000000"],
        ["create", "0", "user", "lgss:x", user_callout(), *"00000"],
        ["create", "2147483648", "user", "lgss:x", user_callout(), *"00000"],
        ["create", "5", "user", "other:x", user_callout(), *"00000"],
        ["create", "5", "keyring", "lgss:x", user_callout(), *"00000"],
        ["create", "5", "lgssc", "0@2a", "1:krb5:0:0", *"00000"],
        ["create", "5", "lgssc", "0@2a", user_callout(), "-1", *"0000"],
        ["create", "5", "lgssc", "0@2a", user_callout(), *"000000"],
        ["-R", "A" * 9000, "create", "5", "lgssc", "0@2a", user_callout(), *"00000"],
        ["--timeout", "3"] * 40 + ["create", "5", "lgssc", "0@2a", user_callout(), *"00000"],
        ["create", "5", "lgssc", "0@2a", user_callout(), *"00000"],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_arguments_that_are_not_for_it(stand_in: StandIn, words: list[str]) -> None:
    """They go on as they came, also good ones of a key that is not there."""
    assert subprocess.run([stand_in.program, *words]).returncode == 0
    ((seen, pipe),) = stand_in.calls()
    assert seen == words and pipe is None


@contextmanager
def replaced(stand_in: StandIn, text: str) -> Iterator[None]:
    """Let lgss_keyring.py be ``text`` for a while, or missing if that is empty."""
    script = stand_in.directory / "lgss_keyring.py"
    away = script.rename(stand_in.directory / "away")
    try:
        if text:
            script.write_text(text)
            script.chmod(0o755)
        yield
    finally:
        away.rename(script)


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", ""], ids=["damaged", "missing"])
def test_lgss_keyring_py_that_does_not_run(stand_in: StandIn, user: Requestor, text: str) -> None:
    """The witness answers for it. A key that is not instantiated is negated by the kernel."""
    with replaced(stand_in, text), rule(stand_in) as name:
        assert failed(user.ask(name(), user_callout()).data) == errno.ELIBACC
        assert user.ask(name(), machine_callout()).error == errno.ENOKEY
