"""The test module's keys: instantiation, update, life."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from handlers import (
    CALLOUT,
    FAILURE,
    FOLDER,
    GOOD,
    NOBODY,
    Handler,
    fork,
    numbers,
    wait_gone,
    wait_pending,
    word,
)
from testmod import (
    in_child,
    pull,
    request_line,
    trigger,
)

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded")]


def test_payload_at_instantiation_is_refused(handler: Handler, description: str) -> None:
    handler('keyctl instantiate $key x 0 || echo "refused"\ninstantiate\n(keep_updating good) &')
    assert trigger(description, CALLOUT).error == 0
    log = handler.log("refused")
    assert "keyctl_instantiate: Invalid argument" in log


def test_instantiation_links_into_the_session(handler: Handler, description: str) -> None:
    handler("instantiate\nkeyctl show @s\nkeyctl rdescribe $key\n(keep_updating good) &")
    report = trigger(description, CALLOUT)
    assert report.error == 0
    log = handler.log("updated")
    assert f"\\_ lgssc: {description}" in log
    assert f"lgssc;0;0;3d010000;{description}" in log


def test_own_session_keyring_as_destination_is_no_hang(handler: Handler, description: str) -> None:
    """A Lustre kernel hangs here for good; the module says EDEADLK after half a second."""
    handler(
        "ring=$(keyctl show @s | sed -n 's/^ *\\([0-9]*\\) .*keyring: _req.*/\\1/p')\n"
        'keyctl instantiate $key "" $ring\ninstantiate && echo second\n(keep_updating good) &'
    )
    report = trigger(description, CALLOUT)
    assert report.error == 0
    assert report.request_us < 10_000_000
    assert "keyctl_instantiate: Resource deadlock avoided" in handler.log("second")


def test_no_instantiation_negates_the_key(handler: Handler, description: str) -> None:
    handler("exit 0")
    report = trigger(description, CALLOUT)
    assert (report.error, report.stage) == (-errno.ENOKEY, "request_key")


def test_key_is_not_readable(handler: Handler, description: str) -> None:
    handler('instantiate\nkeyctl pipe $key || echo "not read"\n(keep_updating good) &')
    assert trigger(description, CALLOUT).error == 0
    assert "Operation not supported" in handler.log("not read")


def test_possession_lets_another_uid_update(handler: Handler, description: str) -> None:
    """A forked child that became another uid still possesses the key, a stranger does not."""
    handler(
        "instantiate\n"
        "nobody='setpriv --reuid nobody --regid nogroup --clear-groups'\n"
        "($nobody keyctl session - keyctl pupdate $key <good; echo stranger done\n"
        " for i in {1..100}; do $nobody keyctl pupdate $key <good && break; sleep 0.1; done\n"
        " echo child done) &"
    )
    report = trigger(description, CALLOUT)
    assert report.error == 0
    log = handler.log("child done")
    assert "keyctl_update: Permission denied" in log[: log.index("stranger done")]


def test_early_updates_get_eagain(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating good) &")
    report = trigger(description, CALLOUT, bind_delay_ms=1500)
    assert report.error == 0
    assert report.early_updates >= 1
    assert report.bound_us >= 1_500_000
    assert "keyctl_update: Resource temporarily unavailable" in handler.log("updated")


def test_unbound_key_stays_at_eagain(handler: Handler, description: str) -> None:
    """A key that request_key(2) made, and no context of the kernel, is never bound."""
    handler("instantiate\n(sleep 0.5; update good; echo done) &")
    subprocess.run(["keyctl", "request2", "lgssc", description, CALLOUT, "@s"], check=True)
    assert "Resource temporarily unavailable" in handler.log("done")


def test_success_is_recorded(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating good) &")
    report = trigger(description, CALLOUT)
    assert (report.error, report.stage, report.found) == (0, "update", False)
    assert report.payload == GOOD
    assert report.seq_win == 2048
    assert 0 < report.request_us <= report.bound_us <= report.update_us
    upcall = handler.log().splitlines()[0].split(" ")
    assert upcall[1:6] == ["create", str(report.serial), "lgssc", description, CALLOUT]
    assert upcall[6:9] == ["0", "0", "0"]


MALFORMED = {
    "empty": b"",
    "one byte": b"\0",
    "seq_win alone": word(2048),
    "no context": GOOD[:16],
    "cut context": GOOD[:-1],
    "trailing byte": GOOD + b"\0",
    "long handle": word(2048) + word(len(GOOD)) + GOOD[8:],
    "longest handle": word(2048) + word(0xFFFFFFFF) + GOOD[8:],
    "wrapping handle": word(2048) + word(0xFFFFFFF8) + GOOD[8:],
    "empty handle": word(2048) + word(0) + GOOD[16:],
    "long context": GOOD[:16] + word(13) + GOOD[20:],
    "longest context": GOOD[:16] + word(0xFFFFFFFF) + GOOD[20:],
    "empty context": GOOD[:16] + word(0),
    "short failure": FAILURE[:-1],
    "failure's errno alone": FAILURE[:8],
    "trailing failure": FAILURE + b"\0",
    "failure without an error": word(0) + word(0) + word(0xD0000),
    "failure with a positive error": word(0) + word(errno.EACCES) + word(0),
    "failure with no errno": word(0) + word(-5000) + word(0),
}


def test_malformed_updates_are_refused(handler: Handler, description: str) -> None:
    for number, data in enumerate(MALFORMED.values()):
        (FOLDER / f"bad.{number:02}").write_bytes(data)
    handler(
        "instantiate\n(while ! [ -e bound ]; do sleep 0.05; done\n"
        'for bad in bad.*; do keyctl pupdate $key <$bad && echo "$bad accepted"; done\n'
        "keep_updating good) &"
    )
    with ThreadPoolExecutor() as pool:
        future = pool.submit(trigger, description, CALLOUT)
        # Before it is bound an update gets EAGAIN, whatever it consists of.
        wait_pending(description)
        (FOLDER / "bound").touch()
        report = future.result()
    log = handler.log("updated after 1\n")
    assert "accepted" not in log
    assert log.count("keyctl_update: Invalid argument") == len(MALFORMED)
    assert report.malformed == len(MALFORMED)
    assert (report.error, report.payload) == (0, GOOD)


def test_failure_gives_its_errno(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating failure) &")
    report = trigger(description, CALLOUT)
    assert report.error == -errno.ENETUNREACH
    assert (report.seq_win, report.gss_major, report.payload) == (0, 0xD0000, FAILURE)


def test_second_update_is_refused(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating good; update good; echo second) &")
    assert trigger(description, CALLOUT, uid=NOBODY).error == 0
    assert "keyctl_update: Key has expired" in handler.log("second")


def test_root_key_is_dropped(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating good) &")
    first = trigger(description, CALLOUT)
    second = trigger(description, CALLOUT)
    assert (first.error, second.error) == (0, 0)
    assert not second.found
    assert first.serial != second.serial
    assert handler.upcalls() == 2


def test_user_key_stays_in_the_user_keyring(handler: Handler, description: str) -> None:
    handler('instantiate\n(keep_updating good) &\necho "keyrings $uid $thread $process $session"')
    first = trigger(description, CALLOUT, uid=NOBODY)
    second = trigger(description, CALLOUT, uid=NOBODY)
    assert (first.error, second.error) == (0, 0)
    assert second.found
    assert first.serial == second.serial
    assert handler.upcalls() == 1

    def user_keyring() -> bytes:
        return subprocess.check_output(["keyctl", "show", "@u"], stderr=subprocess.STDOUT)

    listing = in_child(user_keyring, NOBODY).decode()
    assert f"lgssc: {description}" in listing
    serial = next(line.split()[0] for line in listing.splitlines() if f"_uid.{NOBODY}" in line)
    words = next(line for line in handler.log().splitlines() if line.startswith("keyrings"))
    uid, thread, process, session = words.split()[1:]
    # %T is the user keyring, there is no process keyring, and a session of the user's own.
    assert (uid, thread, process) == (str(NOBODY), serial, "0")
    assert int(session) > 0


def test_root_context_from_a_users_process(handler: Handler, description: str) -> None:
    """Seen with a real client: an ordinary %u with root's flags."""
    handler('instantiate\n(keep_updating good) &\necho "uid $uid"')
    report = trigger(description, CALLOUT, uid=NOBODY, root=True)
    assert report.error == 0
    assert f"uid {NOBODY}" in handler.log()


def test_failed_user_key_is_out_when_the_update_returns(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating failure) &")
    first = trigger(description, CALLOUT, uid=NOBODY)

    def search() -> bytes:
        command = ["keyctl", "search", "@u", "lgssc", description]
        return b"%d" % subprocess.run(command, capture_output=True).returncode

    assert in_child(search, NOBODY) == b"1"
    handler("instantiate\n(keep_updating good) &")
    second = trigger(description, CALLOUT, uid=NOBODY)
    assert (first.error, second.error) == (-errno.ENETUNREACH, 0)
    assert first.serial != second.serial


def test_revoked_by_the_front(handler: Handler, description: str) -> None:
    handler("instantiate\nkeyctl revoke $key")
    report = trigger(description, CALLOUT)
    assert (report.error, report.stage) == (-errno.ENOKEY, "request_key")


def test_waiting_is_bounded(handler: Handler, description: str) -> None:
    handler("instantiate\n(sleep 3; update good; echo late) &")
    report = trigger(description, CALLOUT, timeout_ms=1000)
    assert (report.error, report.stage) == (-errno.ETIMEDOUT, "update")
    assert 1_000_000 <= report.update_us < 8_000_000
    # Nobody waits any more: the key was invalidated.
    assert "keyctl_update: Required key not available" in handler.log("late")


def test_revoked_before_it_is_bound(handler: Handler, description: str) -> None:
    # Not by the front: request_key() looks at the key once more when that has ended.
    handler("instantiate\n(sleep 0.5; keyctl revoke $key; update good; echo done) &")
    report = trigger(description, CALLOUT, bind_delay_ms=4000)
    assert (report.error, report.stage) == (-errno.EKEYREVOKED, "bind")
    assert "keyctl_update: Key has been revoked" in handler.log("done")


def test_revoked_while_pending(handler: Handler, description: str) -> None:
    handler("instantiate\n(sleep 1; keyctl revoke $key; update good; echo done) &")
    report = trigger(description, CALLOUT, timeout_ms=20000)
    assert (report.error, report.stage) == (-errno.EKEYREVOKED, "update")
    assert report.update_us < 15_000_000
    log = handler.log("done")
    assert "Key has been revoked" in log or "Required key not available" in log


def test_two_wait_for_one_key(handler: Handler, description: str) -> None:
    """One of a user's two processes is killed; the other still gets its context."""
    handler("instantiate\n(while ! [ -e killed ]; do sleep 0.05; done; keep_updating good) &")
    line = request_line(description, CALLOUT, root=False)
    pid = fork(lambda: pull(line))
    wait_pending(description)
    with ThreadPoolExecutor() as pool:
        future = pool.submit(trigger, description, CALLOUT, root=False)
        time.sleep(1)
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid, 2)
        (FOLDER / "killed").touch()
        report = future.result()
    assert (report.error, report.found) == (0, True)
    assert handler.upcalls() == 1


def test_many_at_once(handler: Handler) -> None:
    handler("instantiate\n(keep_updating good) &")
    names = [f"0@{next(numbers):x}" for _ in range(24)]
    with ThreadPoolExecutor(len(names)) as pool:
        reports = list(pool.map(lambda name: trigger(name, CALLOUT, timeout_ms=120000), names))
    assert [report.error for report in reports] == [0] * len(names)
    assert len({report.serial for report in reports}) == len(names)
