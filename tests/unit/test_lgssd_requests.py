"""What lgssd does with one record: the keyring that it works in, and the line that it logs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lgss_keyring.daemon import requests
from lgss_keyring.formats import payload
from lgss_keyring.formats.config import Config
from lgss_keyring.formats.errors import KeyOperationError, Kind
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.formats.pipe import Upcall
from lgss_keyring.monitor import service
from lgss_keyring.system import keyrings
from tests.support import keyutils

from .own_session import in_own_session

USER = 61350
UPCALL = Upcall(7, USER, USER, 1, 0x20000C0000201, "lgss-MDT0000-mdc")
ESTABLISHED = Answer(b"context", 2_000_000_000, "alice@LGSS.TEST", None)


class Peer:
    """Of a connection, what a request needs to know."""

    def __init__(self, uid: int) -> None:
        self.uid = self.gid = uid


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return Config(
        log=type(Config().log)(level="error", file=str(tmp_path / "log")),
        krb5=type(Config().krb5)(ccache_directory=str(tmp_path)),
    )


def handle(
    monkeypatch: pytest.MonkeyPatch, settings: Config, serve: Callable[..., Answer], requestor: int = USER
) -> bytes:
    """The answer to :data:`UPCALL` of ``requestor``, where ``serve`` negotiates."""
    monkeypatch.setattr(service, "serve", serve)
    return requests.handle(UPCALL, Peer(requestor), settings)  # type: ignore[arg-type]


def test_a_request_finds_nothing_that_an_earlier_worker_left(
    monkeypatch: pytest.MonkeyPatch, settings: Config
) -> None:
    """libkrb5 would take KEYRING:session for a cache that another user has made there."""
    found: list[int | None] = []

    def serve(*_: object) -> Answer:
        # As a worker that wants to leave something.
        keyutils.add_key(b"_krb_left", b"", keyutils.KEY_SPEC_SESSION_KEYRING, b"keyring")
        return ESTABLISHED

    def look(*_: object) -> Answer:
        for name in (b"_krb_planted", b"_krb_left"):
            found.append(keyutils.search(keyutils.KEY_SPEC_SESSION_KEYRING, name, key_type=b"keyring"))
        return ESTABLISHED

    def work() -> None:
        keyutils.add_key(b"_krb_planted", b"", keyutils.KEY_SPEC_SESSION_KEYRING, b"keyring")
        for negotiates in (serve, look):
            assert handle(monkeypatch, settings, negotiates) == ESTABLISHED.payload

    in_own_session(work)
    assert found == [None, None]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EDQUOT])
def test_session_keyring_that_cannot_be_left(
    monkeypatch: pytest.MonkeyPatch, settings: Config, number: int
) -> None:
    """Where keyrings are forbidden there is none; else the request fails, and says why."""

    def refuse() -> None:
        raise KeyOperationError("cannot join a new session keyring", errno=number)

    monkeypatch.setattr(keyrings, "join_session", refuse)
    answer = handle(monkeypatch, settings, lambda *_: ESTABLISHED)
    if number == errno.EDQUOT:
        assert payload.unpack(answer) == payload.FailurePayload(errno.EDQUOT, 0)
        assert "cannot join a new session keyring" in Path(settings.log.file).read_text()
    else:
        assert answer == ESTABLISHED.payload


@pytest.fixture
def no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keyring of the thread that runs the tests stays as it is."""
    monkeypatch.setattr(keyrings, "leave_session", lambda: None)


@pytest.mark.usefixtures("no_keyring")
def test_failure_leaves_the_line_that_hints_send_people_to(
    monkeypatch: pytest.MonkeyPatch, settings: Config
) -> None:
    """At every level of the log: callers are told that the log of lgssd has the cause."""
    failed = Failed(errno.ENOKEY, 7 << 16, Kind.NO_TICKET, "there is no ticket", "run kinit")
    answer = handle(monkeypatch, settings, lambda *_: Answer.of_failure(failed), requestor=0)
    assert payload.unpack(answer) == payload.FailurePayload(errno.ENOKEY, 7 << 16)
    (line,) = Path(settings.log.file).read_text().splitlines()
    assert f"[{os.getpid()}] warning: uid {USER}: there is no ticket; run kinit | " in line
    fields = dict(field.split("=", 1) for field in line.partition(" | ")[2].split())
    assert float(fields.pop("LGSS_MS")) < 60_000
    assert fields == {
        "LGSS_UID": str(USER),
        "LGSS_REQUESTOR": "0",
        "LGSS_TARGET": "lgss-MDT0000-mdc@0x20000c0000201",
        "LGSS_MECH": "krb5",
        "LGSS_ERROR": Kind.NO_TICKET,
        "LGSS_ERRNO": str(errno.ENOKEY),
    }


@pytest.mark.usefixtures("no_keyring")
def test_failure_without_a_hint_ends_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, settings: Config
) -> None:
    failed = Failed(errno.EIO, 0, Kind.INTERNAL, "it broke")
    handle(monkeypatch, settings, lambda *_: Answer.of_failure(failed), requestor=0)
    assert f"uid {USER}: it broke | " in Path(settings.log.file).read_text()


@pytest.mark.usefixtures("no_keyring")
def test_another_users_request_is_refused_and_logged(
    monkeypatch: pytest.MonkeyPatch, settings: Config
) -> None:
    answer = handle(monkeypatch, settings, lambda *_: ESTABLISHED, requestor=USER + 1)
    assert payload.unpack(answer) == payload.FailurePayload(errno.EACCES, 15 << 16)
    (line,) = Path(settings.log.file).read_text().splitlines()
    assert "may not ask for" in line and f"LGSS_REQUESTOR={USER + 1}" in line
