"""The mechanism krb5 with a GSS-API that answers as told."""

from __future__ import annotations

import types
from typing import Any

import pytest

from lgss_keyring.formats.errors import MechanismError
from lgss_keyring.worker import gss_library
from lgss_keyring.worker.creds import Credential
from lgss_keyring.worker.mech import krb5

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
