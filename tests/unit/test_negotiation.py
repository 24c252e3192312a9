"""The negotiation alone: what is tried again, and an acceptor that breaks the protocol."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from lgss_keyring.formats.callout import UpcallRequest, format_callout, parse_request
from lgss_keyring.formats.config import Config
from lgss_keyring.formats.errors import (
    ChannelError,
    CredentialError,
    Kind,
    LgssError,
    LimitError,
    MechanismError,
    ResolutionError,
)
from lgss_keyring.formats.outcome import Established, Failed
from lgss_keyring.worker import mech
from lgss_keyring.worker.channel.interface import Reply
from lgss_keyring.worker.mech.interface import KeptTicketRefusedError
from lgss_keyring.worker.negotiation import negotiate, preload

COMPLETE, CONTINUE_NEEDED = 0, 1
REQUEST = parse_request(
    [
        *("create", "5", "lgssc", "x"),
        format_callout(uid=1000, gid=1000, lustre_service=1, target_nid=0x20000C0A80105, obd_name="mdc"),
        *("1000", "1000", "0", "0", "0"),
    ]
)


def reply(
    major: int = COMPLETE,
    token: bytes = b"",
    handle: bytes = b"hdl",
    window: int = 128,
    proof: tuple[bytes, bytes] | None = None,
) -> Reply:
    return Reply(handle, major, 0, window, token, proof)


class Acceptor:
    """A channel whose other end says ``answers``, one after the other, and the last one for ever."""

    def __init__(self, *answers: Reply | Exception, is_single_use: bool = False) -> None:
        self.is_single_use = is_single_use
        self.got: list[tuple[bytes, bytes]] = []
        self.closed = 0
        self._answers = list(answers)

    def connect(self) -> None:
        pytest.fail("the negotiation connects by its first exchange")

    def exchange(self, token: bytes, handle: bytes) -> Reply:
        self.got.append((token, handle))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed += 1


class Mechanism:
    """A mechanism that sends ``tokens`` tokens and is complete after ``replies`` of the acceptor's."""

    def __init__(self, tokens: int = 1, replies: int = 1) -> None:
        self.tokens, self.replies = tokens, replies
        self.initiators: list[Initiator] = []
        self.services: list[str] = []
        self.prepared: list[UpcallRequest] = []
        self.failures: list[Exception] = []
        """What the beginning of an attempt raises, one for each attempt."""

    def prepare(self, request: UpcallRequest) -> None:
        self.prepared.append(request)

    def initiator(
        self,
        request: UpcallRequest,
        config: Config,
        service: str,
        report: Callable[[str, str], None],
        rejected: set[bytes],
    ) -> Initiator:
        self.services.append(service)
        if self.failures:
            raise self.failures.pop(0)
        self.initiators.append(Initiator(len(self.initiators), self.tokens, self.replies))
        return self.initiators[-1]


class Initiator:
    name = "alice@LGSS.TEST"

    def __init__(self, attempt: int, tokens: int, replies: int) -> None:
        self.complete = not replies
        self.closed = False
        self.calls: list[str] = []
        self._attempt, self._tokens, self._replies = attempt, tokens, replies
        self._sent = 0

    def step(self, token: bytes | None) -> bytes | None:
        assert not (self.complete and token), "a token for a mechanism that is done"
        self.calls.append(f"step {token!r}")
        if token is not None:
            self._replies -= 1
            self.complete = self._replies <= 0
        if self._sent == self._tokens:
            return None
        self._sent += 1
        return b"%d.%d" % (self._attempt, self._sent)

    def verify_mic(self, message: bytes, mic: bytes) -> None:
        self.calls.append(f"verify {message!r}")
        if mic != b"mic of " + message:
            raise MechanismError("the MIC is wrong", kind=Kind.BAD_VERIFIER)

    def refused(self, major: int, minor: int, token: bytes) -> MechanismError:
        error = KeptTicketRefusedError if token == b"kept" else MechanismError
        return error(f"refused with {token!r}", major=major, kind=Kind.REFUSED_BY_ACCEPTOR)

    def export(self) -> tuple[bytes, int]:
        self.calls.append("export")
        return b"context of attempt %d" % self._attempt, 2_000_000_000

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@pytest.fixture
def mechanism(monkeypatch: pytest.MonkeyPatch) -> Mechanism:
    fake = Mechanism()
    monkeypatch.setitem(mech.MECHANISMS, "krb5", lambda: fake)
    return fake


def run(acceptor: Acceptor, ready: Callable[[], None] = lambda: None) -> Established | Failed:
    return negotiate(REQUEST, Config(), acceptor, host="mds1.example", credential_ready=ready)


def failed(acceptor: Acceptor) -> Failed:
    outcome = run(acceptor)
    assert isinstance(outcome, Failed), outcome
    return outcome


def refusal(token: bytes = b"") -> Reply:
    return reply(13 << 16, token, b"", 0)


SILENT = ChannelError("no answer", errno=errno.ETIMEDOUT, kind=Kind.ACCEPTOR_SILENT)
START_AGAIN = ChannelError("no such context", errno=errno.EACCES, kind=Kind.START_AGAIN)


def test_two_legs(mechanism: Mechanism) -> None:
    mechanism.tokens, mechanism.replies = 2, 2
    acceptor = Acceptor(
        reply(CONTINUE_NEEDED, b"more", b"first", 0), reply(token=b"last", proof=(b"128", b"mic of 128"))
    )
    order: list[str] = []
    outcome = run(acceptor, lambda: order.append(f"ready, {len(acceptor.got)} sent"))
    assert outcome == Established(128, b"hdl", b"context of attempt 0", 2_000_000_000, "alice@LGSS.TEST")
    assert mechanism.services == ["lustre_mds@mds1.example"]
    assert acceptor.got == [(b"0.1", b""), (b"0.2", b"first")] and acceptor.closed == 1
    assert order == ["ready, 0 sent"]
    # The context can no longer verify when it has been exported.
    assert mechanism.initiators[0].calls[-2:] == ["verify b'128'", "export"]


def test_what_the_mechanism_needs_is_imported_before(mechanism: Mechanism) -> None:
    preload(REQUEST)
    assert mechanism.prepared == [REQUEST]


@pytest.mark.parametrize("first", [SILENT, START_AGAIN, refusal(b"kept")])
def test_an_attempt_that_may_succeed_the_next_time_is_made_twice(
    mechanism: Mechanism, first: Reply | Exception
) -> None:
    acceptor = Acceptor(first, reply())
    ready: list[int] = []
    outcome = run(acceptor, lambda: ready.append(len(acceptor.got)))
    assert isinstance(outcome, Established) and outcome.context == b"context of attempt 1"
    # The first token may be in the acceptor's replay cache.
    assert acceptor.got == [(b"0.1", b""), (b"1.1", b"")] and ready == [0, 1]
    assert acceptor.closed == 2 and mechanism.initiators[0].calls == ["step None"]


@pytest.mark.parametrize("answer", [SILENT, START_AGAIN, refusal(b"kept")])
def test_no_attempt_is_made_three_times(mechanism: Mechanism, answer: Reply | Exception) -> None:
    outcome = failed(acceptor := Acceptor(answer))
    assert len(acceptor.got) == len(mechanism.initiators) == acceptor.closed == 2
    assert outcome.kind in (Kind.ACCEPTOR_SILENT, Kind.START_AGAIN, Kind.REFUSED_BY_ACCEPTOR)


@pytest.mark.parametrize("answer", [SILENT, START_AGAIN, refusal(b"kept")])
def test_a_connection_that_cannot_be_made_again_is_used_once(
    mechanism: Mechanism, answer: Reply | Exception
) -> None:
    failed(acceptor := Acceptor(answer, reply(), is_single_use=True))
    assert len(acceptor.got) == len(mechanism.initiators) == acceptor.closed == 1


@pytest.mark.parametrize(
    "answer",
    [
        refusal(),
        ChannelError("refused", errno=errno.ECONNREFUSED, kind=Kind.ACCEPTOR_UNREACHABLE),
        ChannelError("closed", errno=errno.ECONNRESET, kind=Kind.ACCEPTOR_CLOSED),
        ChannelError("denied", errno=errno.EACCES, kind=Kind.RPC_DENIED),
        ChannelError("malformed", errno=errno.EPROTO, kind=Kind.MALFORMED_REPLY),
        ChannelError("changed", errno=errno.EINVAL, kind=Kind.SECURITY_CHANGED),
        LimitError("the time is up"),
        MechanismError("too late", errno=errno.ETIMEDOUT, kind=Kind.START_AGAIN),
        OSError(errno.ETIMEDOUT, "Connection timed out"),
    ],
    ids=str,
)
def test_what_would_fail_again_is_not_tried_again(mechanism: Mechanism, answer: Reply | Exception) -> None:
    outcome = failed(acceptor := Acceptor(answer, reply()))
    assert len(acceptor.got) == len(mechanism.initiators) == acceptor.closed == 1
    if isinstance(answer, LgssError):
        assert (outcome.errno, outcome.kind, outcome.reason) == (answer.errno, answer.kind, answer.reason)


@pytest.mark.parametrize(
    "error",
    [
        CredentialError("no ticket", kind=Kind.NO_TICKET),
        MechanismError("no KDC", errno=errno.ETIMEDOUT, kind=Kind.KDC_UNREACHABLE),
    ],
    ids=str,
)
def test_a_missing_credential_is_looked_for_once_and_sends_nothing(
    mechanism: Mechanism, error: LgssError
) -> None:
    mechanism.failures = [error]
    ready: list[int] = []
    outcome = run(acceptor := Acceptor(reply()), lambda: ready.append(1))
    assert isinstance(outcome, Failed) and outcome.kind == error.kind
    assert (acceptor.got, ready, len(mechanism.services)) == ([], [], 1)


@pytest.mark.parametrize(
    ("error", "kind", "number"),
    [
        (RuntimeError("what?"), "internal", errno.EIO),
        (MemoryError(), "resources", errno.ENOMEM),
        (OSError(errno.EMFILE, "Too many open files"), "resources", errno.EMFILE),
    ],
)
def test_foreign_errors_are_outcomes(mechanism: Mechanism, error: Exception, kind: str, number: int) -> None:
    mechanism.failures = [error]
    outcome = failed(Acceptor(reply()))
    assert (outcome.kind, outcome.errno) == (kind, number)


def test_a_name_that_is_not_found_is_an_outcome(
    mechanism: Mechanism, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise ResolutionError("no name", kind=Kind.NO_HOST_NAME)

    monkeypatch.setattr("lgss_keyring.worker.names.target_host_name", fail)
    outcome = negotiate(REQUEST, Config(), acceptor := Acceptor(reply()))
    assert isinstance(outcome, Failed) and outcome.kind == "no-host-name"
    assert (acceptor.got, mechanism.services) == ([], [])


@pytest.mark.parametrize(
    ("tokens", "replies", "answers", "reason", "sent"),
    [
        pytest.param(1, 1, [reply(CONTINUE_NEEDED, b"x")], "wants to go on where", 1, id="goes on"),
        pytest.param(1, 0, [reply(CONTINUE_NEEDED)], "wants to go on where", 1, id="goes on at once"),
        pytest.param(1, 0, [reply(token=b"x")], "a token after the last one", 1, id="a token too many"),
        pytest.param(
            1, 0, [reply(CONTINUE_NEEDED, b"x")], "a token after the last one", 1, id="a token, and goes on"
        ),
        pytest.param(99, 99, [reply(CONTINUE_NEEDED, b"x")], "after 10 tokens", 10, id="goes on for ever"),
        pytest.param(2, 2, [reply(token=b"x")], "done before the mechanism is", 1, id="done too early"),
        pytest.param(2, 1, [reply(token=b"x")], "done before the mechanism is", 1, id="a token is left"),
        pytest.param(1, 2, [reply(token=b"x")], "done before the mechanism is", 1, id="a reply is left"),
        pytest.param(1, 1, [reply(handle=b"")], "no context handle or no", 1, id="no handle"),
        pytest.param(1, 1, [reply(window=0)], "no context handle or no", 1, id="no window"),
        pytest.param(
            2,
            2,
            [reply(CONTINUE_NEEDED, b"x", b"first"), reply(token=b"y", handle=b"")],
            "no context handle or no",
            2,
            id="only the first handle",
        ),
        pytest.param(1, 1, [reply(proof=(b"128", b"MIC"))], "the MIC is wrong", 1, id="a wrong MIC"),
        pytest.param(1, 1, [refusal(b"x")], "refused with b'x'", 1, id="refuses"),
        pytest.param(1, 1, [reply(2)], "refused with b''", 1, id="a status that is none"),
    ],
)
def test_an_acceptor_that_breaks_the_protocol_gets_no_context(
    mechanism: Mechanism, tokens: int, replies: int, answers: list[Reply], reason: str, sent: int
) -> None:
    mechanism.tokens, mechanism.replies = tokens, replies
    outcome = failed(acceptor := Acceptor(*answers))
    assert reason in outcome.reason
    assert (len(acceptor.got), acceptor.closed) == (sent, 1)
    (initiator,) = mechanism.initiators
    assert "export" not in initiator.calls
    assert outcome.errno == (errno.EPROTO if "handle" in reason else errno.EACCES)
