"""The mechanism krb5 with a GSS-API that answers as told."""

from __future__ import annotations

import types
from typing import Any

import pytest

from lgss_keyring.formats.errors import MechanismError
from lgss_keyring.worker import gss_library
from lgss_keyring.worker.creds import Credential
from lgss_keyring.worker.mech import krb5
from lgss_keyring.worker.mech.interface import KeptTicketRefusedError

MUTUAL = int(gss_library.RequirementFlag.mutual_authentication)
OTHERS = int(gss_library.RequirementFlag.replay_detection | gss_library.RequirementFlag.integrity)


@pytest.mark.parametrize(
    ("flags", "more_steps", "refused"),
    [
        (OTHERS, False, True),
        (0, False, True),
        (OTHERS | MUTUAL, False, False),
        # The flags of a context that is not complete say nothing yet (RFC 2744, 5.19).
        (0, True, False),
    ],
)
def test_a_context_without_mutual_authentication_is_refused(
    monkeypatch: pytest.MonkeyPatch, flags: int, more_steps: bool, refused: bool
) -> None:
    """Anybody could be at the other end."""
    asked: list[int] = []

    def init(target: Any, handle: Any, context: Any, mech: Any, required: int, input_token: Any) -> Any:
        asked.append(int(required))
        return types.SimpleNamespace(context=object(), more_steps=more_steps, flags=flags, token=b"token")

    monkeypatch.setattr(gss_library.sec_contexts, "init_sec_context", init)
    monkeypatch.setattr(gss_library.creds, "inquire_cred", lambda *_, **__: types.SimpleNamespace(name=None))
    handle: Any = object()
    initiator = krb5.Krb5Initiator(Credential(handle), "lustre_mds@localhost", lambda level, text: None)
    if refused:
        with pytest.raises(MechanismError, match="lustre_mds@localhost did not authenticate itself"):
            initiator.step(None)
    else:
        assert initiator.step(None) == b"token" and initiator.complete != more_steps
    assert asked == [MUTUAL]


class Tickets:
    """Stands for the kept tickets; ``came_from_the_file``: another attempt gets new ones."""

    def __init__(self, came_from_the_file: bool) -> None:
        self.came_from_the_file = came_from_the_file
        self.rejected = 0

    def reject(self) -> bool:
        self.rejected += 1
        return self.came_from_the_file


FIRST = -1765328384
"""Of the numbers of RFC 4120, 7.5.9, in libkrb5."""


class Said(gss_library.GSSError):
    """An error token of the acceptor's."""

    def get_all_statuses(self, code: int, is_maj: bool) -> list[str]:
        return ["major"] if is_maj else [f"error {code - (1 << 32) - FIRST}"]


SKEW, INTEGRITY = (Said(13 << 16, FIRST + number & 0xFFFFFFFF) for number in (37, 31))


@pytest.mark.parametrize(
    ("said", "kept", "kind", "words", "again"),
    [
        (None, None, "refused-by-acceptor", "GSS major status 0x000d0000, minor 7", False),
        (
            INTEGRITY,
            None,
            "refused-by-acceptor",
            "refused ?: error 31 (GSS major",
            False,
        ),
        (
            INTEGRITY,
            False,
            "refused-by-acceptor",
            "refused ?: error 31 (GSS major",
            False,
        ),
        (
            INTEGRITY,
            True,
            "refused-by-acceptor",
            "refused ?: error 31 (GSS major",
            True,
        ),
        (SKEW, True, "clock-skew", "refused ?: error 37 (GSS", False),
    ],
    ids=["no words", "the acceptor's words", "a new ticket", "a kept ticket", "the clock"],
)
def test_refusal_of_the_acceptor(
    monkeypatch: pytest.MonkeyPatch,
    said: gss_library.GSSError | None,
    kept: bool | None,
    kind: str,
    words: str,
    again: bool,
) -> None:
    """A kept ticket may be of an old key: another attempt gets a new one.  A wrong clock is no fault of
    the ticket."""

    def init(target: Any, handle: Any, context: Any, mech: Any, required: int, input_token: Any) -> Any:
        assert input_token == b"error" and said is not None
        raise said

    monkeypatch.setattr(gss_library.sec_contexts, "init_sec_context", init)
    monkeypatch.setattr(gss_library.creds, "inquire_cred", lambda *_, **__: types.SimpleNamespace(name=None))
    handle: Any = object()
    tickets: Any = None if kept is None else Tickets(kept)
    credential = Credential(handle, service_tickets=tickets)
    initiator = krb5.Krb5Initiator(credential, "lustre_mds@localhost", lambda level, text: None)
    context: Any = object()
    initiator._context = context
    error = initiator.refused(13 << 16, 7, b"error" if said else b"")
    assert (error.kind, error.major) == (kind, 13 << 16) and words in error.reason and error.hint
    assert isinstance(error, KeptTicketRefusedError) == again
    assert tickets is None or tickets.rejected == (kind != "clock-skew")
