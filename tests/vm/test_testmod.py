"""The kernel test module's behaviours, shown with plain keyctl and a shell handler.

Runs inside the virtual machine. Nothing of the product takes part: what these
tests show is that the module does what docs/protocol.md says a Lustre kernel does.
"""

from __future__ import annotations

import errno
import itertools
import os
import pwd
import signal
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testmod import (
    ACCEPTOR,
    DEBUG_LEVEL,
    INIT_CHANNEL,
    PARAMETERS,
    TRIGGER,
    Acceptor,
    Channel,
    TokenRequest,
    answer_record,
    in_child,
    pull,
    request_line,
    trigger,
)

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded")]

RULES = Path("/etc/request-key.d")
FOLDER = Path("/run/lgss-testmod")
CALLOUT = "2:krb5:0:0:r:p:1:0x20000c0a84d01:lustre-MDT0000-mdc:0x20000c0a84d02:1:uuid"
NOBODY = pwd.getpwnam("nobody").pw_uid

GOOD = struct.pack("=II8sI12s", 2048, 8, b"\x01handle\x02", 12, b"context data")
FAILURE = struct.pack("=IiI", 0, -errno.ENETUNREACH, 0xD0000)

# Written before each test's own part: what an upcall is made of, and words for it.
PRELUDE = r"""#!/bin/bash
exec >>/run/lgss-testmod/log 2>&1 </dev/null
cd /run/lgss-testmod
key=$2 description=$4 uid=$6 thread=$8 process=$9 session=${10}
echo "upcall $*"
instantiate() { keyctl instantiate $key "" 0; }
update() { keyctl pupdate $key <"$1"; }
keep_updating() {
    local i
    for i in {1..200}; do
        update "$1" && { echo "updated after $i"; return; }
        sleep 0.05
    done
}
"""

numbers = itertools.count(0x1000)


@pytest.fixture
def description() -> str:
    """Return a key description that no other test uses."""
    return f"0@{next(numbers):x}"


class Handler:
    """A shell script as the handler of all `lgssc` keys."""

    def __init__(self) -> None:
        self.script = FOLDER / "handler"
        (FOLDER / "good").write_bytes(GOOD)
        (FOLDER / "failure").write_bytes(FAILURE)

    def __call__(self, body: str) -> None:
        """Set what the script does after the prelude."""
        self.script.write_text(PRELUDE + body + "\n")
        self.script.chmod(0o755)

    def log(self, *wanted: str, limit: float = 30) -> str:
        """Return what the handler wrote, once it has written all that is wanted."""
        end = time.monotonic() + limit
        while True:
            text = (FOLDER / "log").read_text() if (FOLDER / "log").exists() else ""
            if all(word in text for word in wanted):
                return text
            assert time.monotonic() < end, f"no {wanted} in:\n{text}"
            time.sleep(0.05)

    def upcalls(self) -> int:
        """Return how many upcalls there were."""
        return sum(line.startswith("upcall ") for line in self.log().splitlines())


@pytest.fixture(scope="module")
def rule() -> Iterator[None]:
    """Install the rule, with a product's rule for the same type out of the way."""
    others = [path for path in RULES.glob("*.conf") if "lgssc" in path.read_text()]
    for path in others:
        path.rename(path.with_suffix(".set-aside"))
    ours = RULES / "lgss-testmod.conf"
    ours.write_text(f"create lgssc * * {FOLDER}/handler %o %k %t %d %c %u %g %T %P %S\n")
    try:
        yield
    finally:
        ours.unlink()
        for path in others:
            path.with_suffix(".set-aside").rename(path)


@pytest.fixture
def handler(rule: None) -> Iterator[Handler]:
    """Return the handler, with an empty log."""
    subprocess.run(["rm", "-rf", FOLDER], check=True)
    FOLDER.mkdir()
    yield Handler()


@pytest.fixture
def parameter() -> Iterator[Callable[[str, int], None]]:
    """Set parameters of the module for one test."""
    before: dict[str, str] = {}

    def change(name: str, value: int) -> None:
        before.setdefault(name, (PARAMETERS / name).read_text())
        (PARAMETERS / name).write_text(f"{value}\n")

    yield change
    for name, text in before.items():
        (PARAMETERS / name).write_text(text)


def wait_gone(pid: int, limit: float) -> None:
    """Wait until a child has ended."""
    end = time.monotonic() + limit
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < end, f"process {pid} does not end"
        time.sleep(0.02)


def fork(work: Callable[[], object]) -> int:
    """Do something in a child that is not waited for."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def wait_pending(description: str) -> None:
    """Wait until a key of root's is bound to a context that waits for its update."""
    end = time.monotonic() + 30
    while f"{description}: pending" not in Path("/proc/keys").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---- instantiation ----


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


# ---- update ----


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


def word(value: int) -> bytes:
    """Return a 32-bit field."""
    return struct.pack("=I", value & 0xFFFFFFFF)


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


# ---- the life of a key ----


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
    # %T is the user keyring, there is no process keyring, and a session of his own.
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


# ---- the trigger device ----


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"description=0@1",
        b"callout=x",
        b"description= callout=x",
        b"root=2 description=0@1 callout=x",
        b"root description=0@1 callout=x",
        b"speed=1 description=0@1 callout=x",
        b"timeout_ms=-1 description=0@1 callout=x",
        b"timeout_ms=300001 description=0@1 callout=x",
        b"description=0@1 callout=x\0y",
        b"description=0@1 callout=" + bytes(5000),
    ],
)
def test_bad_requests_are_refused(line: bytes) -> None:
    with pytest.raises(OSError) as caught:
        pull(line)
    assert caught.value.errno in {errno.EINVAL, errno.ERANGE}


def references() -> int:
    """Return how many references to the module there are."""
    return int(Path("/sys/module/lgss_testmod/refcnt").read_text())


def test_killed_while_the_handler_lingers(handler: Handler, description: str) -> None:
    """A handler that does not end keeps request_key() waiting, but nobody who is killed."""
    handler("echo $$ >pid\ninstantiate\nexec sleep 300")
    line = request_line(description, CALLOUT, root=True, hold=True)
    pid = fork(lambda: pull(line))
    handler.log("upcall")
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid, 2)
    # The worker is still in request_key(), uninterruptibly, and with the lock.
    assert references() == 1
    os.kill(int((FOLDER / "pid").read_text()), signal.SIGKILL)
    end = time.monotonic() + 10
    while references():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_killed_while_it_waits_for_the_update(handler: Handler, description: str) -> None:
    handler("instantiate\n(while ! [ -e killed ]; do sleep 0.05; done; sleep 0.5; update good; echo done) &")
    line = request_line(description, CALLOUT, root=False, timeout_ms=300000)
    pid = fork(lambda: pull(line))
    wait_pending(description)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid, 2)
    (FOLDER / "killed").touch()
    assert "keyctl_update: Required key not available" in handler.log("done")
    assert references() == 0


# ---- init_channel ----


def test_modes() -> None:
    info = INIT_CHANNEL.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o200, 0)
    assert stat.S_IMODE(ACCEPTOR.stat().st_mode) == 0o600
    assert stat.S_IMODE(TRIGGER.stat().st_mode) == 0o666

    def write() -> bytes:
        Channel(b"token").write()
        return b""

    with pytest.raises(PermissionError):
        in_child(write, NOBODY)


def test_round_trip() -> None:
    token = bytes(range(256)) * 3
    with Acceptor(lambda request: b"reply to " + request.token[::-1]) as acceptor:
        channel = Channel(token)
        status, reply = channel.write()
    expected = b"reply to " + token[::-1]
    assert status == 0
    assert reply == expected.ljust(len(reply), b"\0")
    (request,) = acceptor.requests
    assert request == TokenRequest(request.id, 42, 1, 1000, 1001, b"lustre-MDT0000-mdc-test", token)


def test_round_trips_at_once() -> None:
    tokens = [b"token %d" % number for number in range(24)]

    def ask(token: bytes) -> tuple[int, bytes]:
        return Channel(token).write()

    with Acceptor(lambda request: request.token[::-1]), ThreadPoolExecutor(len(tokens)) as pool:
        answers = list(pool.map(ask, tokens))
    assert [(status, reply.rstrip(b"\0")) for status, reply in answers] == [(0, t[::-1]) for t in tokens]


def test_refusal_of_the_server() -> None:
    with Acceptor(lambda request: -errno.EACCES):
        assert Channel(b"token").write()[0] == -errno.EACCES


def test_nobody_answers(parameter: Callable[[str, int], None]) -> None:
    parameter("answer_limit_ms", 700)
    start = time.monotonic()
    channel = Channel(b"token")
    assert channel.write()[0] == -errno.ETIMEDOUT
    assert 0.7 <= time.monotonic() - start < 5


def test_late_answer_is_dropped(parameter: Callable[[str, int], None]) -> None:
    parameter("answer_limit_ms", 500)
    device = os.open(ACCEPTOR, os.O_RDWR)
    try:
        with ThreadPoolExecutor() as pool:
            future = pool.submit(Channel(b"token").write)
            request = TokenRequest.parse(os.read(device, 70000))
            assert future.result()[0] == -errno.ETIMEDOUT
        with pytest.raises(FileNotFoundError):
            os.write(device, answer_record(request.id, 0, b"late"))
    finally:
        os.close(device)


def test_acceptor_with_too_little_room() -> None:
    device = os.open(ACCEPTOR, os.O_RDWR)
    try:
        with ThreadPoolExecutor() as pool:
            future = pool.submit(Channel(b"token").write)
            # One byte is never enough, and the request stays for the next read.
            with pytest.raises(OSError) as caught:
                os.read(device, 1)
            assert caught.value.errno == errno.EMSGSIZE
            request = TokenRequest.parse(os.read(device, 70000))
            os.write(device, answer_record(request.id, 0, b"reply"))
            assert future.result()[0] == 0
    finally:
        os.close(device)


def errno_of(channel: Channel, data: bytes | None = None) -> int:
    """Return with which errno a write fails."""
    device = os.open(INIT_CHANNEL, os.O_WRONLY)
    try:
        with pytest.raises(OSError) as caught:
            os.write(device, bytes(channel.record) if data is None else data)
    finally:
        os.close(device)
    assert caught.value.errno is not None
    return caught.value.errno


@pytest.mark.parametrize("size", [1, 8, 71, 73, 144])
def test_wrong_size(size: int) -> None:
    channel = Channel(b"token")
    assert errno_of(channel, (bytes(channel.record) * 2)[:size]) == errno.EINVAL


@pytest.mark.parametrize("version", [0, 1, 3])
def test_wrong_version(version: int) -> None:
    channel = Channel(b"token")
    channel.record.version = version
    assert errno_of(channel) == errno.EINVAL


@pytest.mark.parametrize("field", ["obd_name", "send_token"])
@pytest.mark.parametrize("address", [0, 8, 0xFFFF_8880_0000_0000])
def test_faulty_source(field: str, address: int) -> None:
    channel = Channel(b"token")
    setattr(channel.record, field, address)
    assert errno_of(channel) == errno.EFAULT


@pytest.mark.parametrize("field", ["reply_buf", "status"])
@pytest.mark.parametrize("address", [0, 8, 0xFFFF_8880_0000_0000])
def test_faulty_target(field: str, address: int) -> None:
    channel = Channel(b"token")
    setattr(channel.record, field, address)
    with Acceptor(lambda request: b"reply"):
        assert errno_of(channel) == errno.EFAULT


def test_bounds_of_the_record() -> None:
    assert errno_of(Channel(b"token", obd_name=b"")) == errno.EINVAL
    assert errno_of(Channel(b"token", obd_name=b"x" * 64)) == errno.EINVAL
    empty = Channel(b"token")
    empty.record.send_token_size = 0
    assert errno_of(empty) == errno.EINVAL
    huge = Channel(b"token")
    huge.record.send_token_size = 1 << 63
    assert errno_of(huge) == errno.E2BIG
    tight = Channel(b"token")
    tight.record.reply_buf_size = 4
    with Acceptor(lambda request: b"reply"):
        assert errno_of(tight) == errno.EMSGSIZE
        assert Channel(b"token", obd_name=b"x" * 63).write()[0] == 0


def test_killed_while_it_waits_for_the_acceptor() -> None:
    device = os.open(ACCEPTOR, os.O_RDWR)
    try:
        pid = fork(lambda: Channel(b"token").write())
        request = TokenRequest.parse(os.read(device, 70000))
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid, 2)
        with pytest.raises(FileNotFoundError):
            os.write(device, answer_record(request.id, 0))
    finally:
        os.close(device)


# ---- the lock of a mount ----


def test_writes_wait_for_a_mount(handler: Handler, description: str) -> None:
    """The write gets through when request_key() has returned, and not before."""
    handler("instantiate\n(keep_updating good) &\nsleep 2")
    with Acceptor(lambda request: b"reply"), ThreadPoolExecutor() as pool:
        future = pool.submit(trigger, description, CALLOUT, hold=True)
        handler.log("upcall")
        start = time.monotonic()
        assert Channel(b"token").write()[0] == 0
        waited = time.monotonic() - start
        report = future.result()
    assert report.error == 0
    # The handler had started already, so not the whole of its two seconds.
    assert 1 <= waited < 10


def test_waiting_for_a_mount_is_bounded(
    handler: Handler, description: str, parameter: Callable[[str, int], None]
) -> None:
    """What deadlocks a real client for good: a front that waits for its own write."""
    parameter("lock_limit_ms", 500)
    handler("instantiate\n(keep_updating good) &\nwhile ! [ -e written ]; do sleep 0.05; done")
    with ThreadPoolExecutor() as pool:
        future = pool.submit(trigger, description, CALLOUT, hold=True)
        handler.log("upcall")
        assert errno_of(Channel(b"token")) == errno.EDEADLK
        # Another mount has to wait as well, and is told so.
        other = trigger(f"0@{next(numbers):x}", CALLOUT, hold=True)
        assert (other.error, other.stage) == (-errno.EDEADLK, "lock")
        (FOLDER / "written").touch()
        assert future.result().error == 0


def test_killed_while_it_waits_for_a_mount(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating good) &\nwhile ! [ -e killed ]; do sleep 0.05; done")
    with ThreadPoolExecutor() as pool:
        future = pool.submit(trigger, description, CALLOUT, hold=True)
        handler.log("upcall")
        pid = fork(lambda: Channel(b"token").write())
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid, 2)
        (FOLDER / "killed").touch()
        assert future.result().error == 0


# ---- the rest ----


def test_debug_level() -> None:
    assert DEBUG_LEVEL.read_text() == "1\n"
    try:
        for level in range(5):
            DEBUG_LEVEL.write_text(f"{level}\n")
            assert DEBUG_LEVEL.read_text() == f"{level}\n"
        for text in ("5", "-1", "x", ""):
            with DEBUG_LEVEL.open("w") as file, pytest.raises(OSError):
                os.write(file.fileno(), text.encode() or b"\n")
    finally:
        DEBUG_LEVEL.write_text("1\n")


def test_unloading_takes_the_keys_along(handler: Handler, description: str) -> None:
    handler("instantiate\n(keep_updating good) &")
    assert trigger(description, CALLOUT, uid=NOBODY).error == 0
    subprocess.run(["rmmod", "lgss_testmod"], check=True, timeout=60)
    assert not INIT_CHANNEL.exists()
    subprocess.run(["modprobe", "lgss_testmod"], check=True)
    report = trigger(description, CALLOUT, uid=NOBODY)
    assert (report.error, report.found) == (0, False)
