"""A resident worker with gssnull, through the messages that lgssd sends and gets."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lgss_keyring.formats import config, worker_messages
from lgss_keyring.formats.callout import format_callout
from lgss_keyring.formats.errors import ResolutionError
from lgss_keyring.formats.nid import Nid
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.formats.worker_messages import CredentialReady, Token
from lgss_keyring.worker import names
from tests.support.resident import ResidentWorker, arguments

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody")

UID = 61234
SETTINGS = config.Config(hosts={"10.1.2.3": "server"})


def words(uid: int = UID, mechanism: str = "gssnull", obd_name: str = "lustre-MDT0000", **other: Any) -> Any:
    fields: dict[str, Any] = {"lustre_service": 1, "target_nid": Nid.parse("10.1.2.3@tcp").to_int(), **other}
    text = format_callout(mechanism=mechanism, uid=uid, gid=uid, obd_name=obd_name, **fields)
    return arguments(text, uid, "lgssc")


def reply(token: bytes, major: int = 0) -> bytes:
    data = struct.pack("=IIIII4sI", 0, major, 0, 2048, 4, b"hdl.", len(token)) + token
    return worker_messages.pack_reply(0, data + bytes(-len(token) % 4))


@pytest.fixture
def worker() -> Iterator[ResidentWorker]:
    with ResidentWorker(words(), SETTINGS) as worker:
        yield worker


def begun(worker: ResidentWorker, number: int) -> None:
    assert worker.event() == (number, CredentialReady())
    found, event = worker.event()
    assert found == number and isinstance(event, Token) and len(event.token) == 8


def failure(answer: Answer) -> Failed:
    assert answer.failure is not None
    return answer.failure


def test_one_request_after_the_other(worker: ResidentWorker) -> None:
    assert worker.group == (UID, False)
    for _ in range(3):
        number = worker.begin(words())
        begun(worker, number)
        worker.send(reply(b"01234567"), number)
        answer = worker.answer(number)
        assert answer.failure is None and answer.initiator == f"gssnull of uid {UID}"
    end = time.monotonic() + 10
    while worker.page.look() != (0.0, 0, "") and time.monotonic() < end:
        time.sleep(0.001)
    assert worker.page.look() == (0.0, 0, "")


def test_many_at_a_time(worker: ResidentWorker) -> None:
    numbers = [worker.begin(words()) for _ in range(20)]
    for number in numbers:
        begun(worker, number)
    for number in reversed(numbers):
        worker.send(reply(b"01234567"), number)
        assert worker.answer(number).failure is None


def test_it_is_the_user_for_good_and_has_nothing_of_lgssds(worker: ResidentWorker) -> None:
    begun(worker, worker.begin(words()))
    with open(f"/proc/{worker.pid}/status", encoding="ascii") as file:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    assert lines["Uid"].split() == lines["Gid"].split() == [str(UID)] * 4
    assert (lines["Groups"].strip(), lines["CapPrm"], lines["NoNewPrivs"]) == ("", "0" * 16, "1")
    links = [os.readlink(f"/proc/{worker.pid}/fd/{each}") for each in worker.descriptors()]
    assert links[:3] == ["/dev/null"] * 3
    assert sorted(each.partition(":")[0] for each in links[3:]) == ["anon_inode", "socket"]
    assert os.stat(f"/proc/{worker.pid}/mem").st_uid == 0  # not dumpable
    with open(f"/proc/{worker.pid}/limits", encoding="ascii") as file:
        assert "Max core file size        0                    0" in file.read()


def test_a_dropped_request_is_forgotten(worker: ResidentWorker) -> None:
    # Before it begins, and while it waits for its answer.
    first = worker.begin(words())
    begun(worker, first)
    worker.send(b"D", first)
    os.kill(worker.pid, 19)
    second, third = worker.begin(words()), worker.begin(words())
    worker.send(b"D", second)
    worker.send(reply(b"01234567"), first)
    os.kill(worker.pid, 18)
    begun(worker, third)
    worker.send(b"D", 12345)
    worker.send(reply(b"01234567"), third)
    assert worker.answer(third).failure is None


@pytest.mark.parametrize(
    ("request_words", "kind", "number"),
    [
        (words(mechanism="sk"), "mechanism-unsupported", errno.EPROTONOSUPPORT),
        (words(uid=UID + 1), "internal", errno.EIO),
        (words(flags="r"), "internal", errno.EIO),
        ([*words()[:4], "no:callout", *words()[5:]], "bad-request", errno.EINVAL),
        (["modify", *words()[1:]], "bad-request", errno.EINVAL),
    ],
)
def test_a_bad_request_fails_alone(
    worker: ResidentWorker, request_words: list[str], kind: str, number: int
) -> None:
    found = failure(worker.ask(request_words))
    assert (found.kind, found.errno) == (kind, number)
    begun(worker, worker.begin(words()))


def test_its_time_was_over(worker: ResidentWorker) -> None:
    assert failure(worker.answer(worker.begin(words(), seconds=0))).kind == "resources"


def test_failures_of_the_channel(worker: ResidentWorker) -> None:
    number = worker.begin(words())
    begun(worker, number)
    worker.send(worker_messages.pack_reply(-errno.EACCES, b""), number)
    assert failure(worker.answer(number)).kind == "refused-by-server"
    # The write itself failed.
    number = worker.begin(words())
    begun(worker, number)
    worker.send(worker_messages.pack_outcome(Failed(errno.ENODEV, 0, "target-gone", "no", "h")), number)
    assert failure(worker.answer(number)) == Failed(errno.ENODEV, 0, "target-gone", "no", "h")
    # Silence is tried once more; the credential is reported once.
    number = worker.begin(words())
    begun(worker, number)
    worker.send(worker_messages.pack_reply(-errno.ETIMEDOUT, b""), number)
    assert isinstance(worker.event()[1], Token)
    worker.send(worker_messages.pack_reply(-errno.ETIMEDOUT, b""), number)
    assert failure(worker.answer(number)).kind == "acceptor-silent"
    number = worker.begin(words())
    begun(worker, number)
    worker.send(reply(b"short"), number)
    assert failure(worker.answer(number)).kind == "mechanism"


@pytest.mark.parametrize("level", ["debug", "info", "error"])
def test_steps_below_the_level_are_not_sent(level: str) -> None:
    with ResidentWorker(words(), SETTINGS, level) as worker:
        number = worker.begin(words())
        steps = []
        while not isinstance((event := worker.event()[1]), Token):
            steps.append(event)
        said = [event[1] for event in steps if isinstance(event, tuple)]
        expected = [f"working as uid {UID}, gid {UID}", "the acceptor is lustre_mds@server"]
        assert said == (expected if level == "debug" else [])
        worker.send(b"D", number)


@pytest.mark.parametrize("message", [b"", b"\1", b"\1\0\0\0J", b"\1\0\0\0J\0\0\0\0too few\0"])
def test_what_lgssd_never_says_ends_it(worker: ResidentWorker, message: bytes) -> None:
    worker.socket.send(message)
    assert worker.wait() == (0 if message == b"" else 1)


def test_an_answer_that_is_not_due_ends_it(worker: ResidentWorker) -> None:
    number = worker.begin(words())
    begun(worker, number)
    worker.send(b"Z", number)
    assert worker.wait() == 1
    assert worker.page.look()[2].startswith("the worker cannot go on: ")


def test_it_ends_with_its_connection(worker: ResidentWorker) -> None:
    worker.begin(words())
    worker.socket.close()
    assert worker.wait() in (0, 1)


def test_it_ends_with_lgssd() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        worker = ResidentWorker(words(), SETTINGS)
        os.write(writer, b"%d" % worker.pid)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    its = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    for _ in range(500):
        try:
            with open(f"/proc/{its}/stat", encoding="ascii") as file:
                if file.read().rpartition(")")[2].split()[0] in "ZX":
                    return
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError("it lives on")


def test_the_names_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from lgss_keyring.worker import identity

    monkeypatch.setattr(identity, "NAMES_AS_THEY_ARE", "/nonexistent/file")
    settings = config.Config(hosts=SETTINGS.hosts, names=config.Names(canonicalize=False))
    with ResidentWorker(words(), settings) as worker:
        found = failure(worker.ask(words()))
    assert "canonicalize is off" in found.reason and found.kind == "config"


def test_no_descriptor_and_no_memory_is_left(worker: ResidentWorker) -> None:
    def some(count: int) -> None:
        for turn in range(count):
            if turn % 4 == 0:
                failure(worker.ask(words(mechanism="sk")))
                continue
            number = worker.begin(words())
            begun(worker, number)
            worker.send(reply(b"01234567" if turn % 4 == 1 else b"x"), number)
            worker.answer(number)

    some(100)
    before = worker.descriptors(), worker.memory()
    some(2000)
    assert worker.descriptors() == before[0]
    assert worker.memory() < before[1] * 1.05


def test_a_name_is_asked_for_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def told(address: tuple[str, int], flags: int) -> tuple[str, str]:
        asked.append(address[0])
        if address[0].endswith(".9"):
            raise OSError("no name")
        return f"host{len(asked)}", ""

    monkeypatch.setattr(socket, "getnameinfo", told)
    monkeypatch.setattr(names, "_found", {})
    nids = [Nid.parse(f"10.9.9.{number}@tcp") for number in (1, 2, 9)]
    nothing = config.Config()
    assert [names.host_name(nid, nothing) for nid in (*nids[:2], *nids[:2])] == ["host1", "host2"] * 2
    for _ in range(2):  # a name that was not found is asked for again
        with pytest.raises(ResolutionError):
            names.host_name(nids[2], nothing)
    assert len(asked) == 4
    monkeypatch.setattr(names, "NAME_SECONDS", 0)
    assert names.host_name(nids[0], nothing) == "host5"
