"""Kerberos V5 (RFC 4121) with mutual authentication, by python-gssapi."""

from __future__ import annotations

from lgss_keyring.formats.crypto import rfc3961
from lgss_keyring.formats.errors import (
    ACCEPTOR_DEFECT_HINT,
    BAD_VERIFIER_HINT,
    GSS_S_BAD_MIC,
    Kind,
    LgssError,
    MechanismError,
)
from lgss_keyring.formats.payload import Krb5Context
from lgss_keyring.worker import gss_library
from lgss_keyring.worker.mech.interface import KeptTicketRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gssapi.raw.named_tuples import InitSecContextResult

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Report
    from lgss_keyring.worker.creds import Credential

INITIATOR = 1
CFX = 2
ACCEPTOR_SUBKEY = 4

# Failures that a new TGT of the same principal would not cure.
TICKET_IS_GOOD = (
    Kind.SERVICE_UNKNOWN,
    Kind.SERVICE_LOCKED,
    Kind.SERVICE_EXPIRED,
    Kind.KDC_UNREACHABLE,
    Kind.CLOCK_SKEW,
    Kind.ENCTYPE,
)


def _source(
    request: UpcallRequest,
) -> Callable[[UpcallRequest, Config, str, Report, set[bytes]], Credential]:
    if request.is_machine:
        from lgss_keyring.worker.creds import machine

        return machine.acquire
    from lgss_keyring.worker.creds import user

    return user.acquire


def prepare(request: UpcallRequest) -> None:
    """See :class:`lgss_keyring.worker.mech.interface.Mechanism`."""
    _source(request)


def initiator(
    request: UpcallRequest, config: Config, service: str, report: Report, rejected: set[bytes]
) -> Krb5Initiator:
    """Begin a context with ``service``; see :class:`lgss_keyring.worker.mech.interface.Mechanism`."""
    report("debug", "looking for a credential, at the KDC if it has to be")
    return Krb5Initiator(_source(request)(request, config, service, report, rejected), service, report)


class Krb5Initiator:
    """See :class:`lgss_keyring.worker.mech.interface.Initiator`."""

    def __init__(self, credential: Credential, service: str, report: Report) -> None:
        self.complete = False
        self._report = report
        self._held: Credential | None = credential
        self._service = service
        self._context: gss_library.sec_contexts.SecurityContext | None = None
        self._target = gss_library.names.import_name(service.encode(), gss_library.NameType.hostbased_service)
        self.name = credential.name or self._inquire_name()
        report("debug", f"the initiator is {self.name}")

    def close(self) -> None:
        """Give up context, credential and its copy in memory."""
        self._context = self._held = None

    @property
    def _credential(self) -> Credential:
        assert self._held is not None
        return self._held

    def _inquire_name(self) -> str:
        try:
            result = gss_library.creds.inquire_cred(
                self._credential.handle, lifetime=True, usage=False, mechs=False
            )
            return gss_library.shown_name(result.name)
        except gss_library.GSSError as error:
            raise self._failure("cannot use the credential", error) from error

    def _failure(self, problem: str, error: gss_library.GSSError) -> LgssError:
        # Nothing of a context is touched after a failed step (CVE-2017-11462).
        self._context = None
        return gss_library.explain(error, problem, MechanismError)

    def step(self, token: bytes | None) -> bytes | None:
        """gss_init_sec_context (RFC 2744, 5.19) once; raises MechanismError."""
        if token is None:
            self._report("debug", f"getting a ticket for {self._service}, from the KDC if there is none yet")
        try:
            result = self._first() if token is None else self._init(token)
        except gss_library.GSSError as error:
            failure = self._failure(f"cannot authenticate {self.name} to {self._service}", error)
            if token is not None or self._credential.anew is None or failure.kind in TICKET_IS_GOOD:
                raise failure from error
            # The cached ticket may be one of a realm that was made anew, or of keys that
            # were changed: it must not stand in the way until it expires.
            self._report("debug", failure.reason)
            try:
                self._held = self._credential.anew()
            except LgssError as second:
                # The first cause is the one to report: there may be no keytab at all.
                self._report("debug", second.reason)
                raise failure from error
            self.name = self._credential.name or self._inquire_name()
            return self.step(None)
        self._context = result.context
        self.complete = not result.more_steps
        if self.complete and not result.flags & gss_library.RequirementFlag.mutual_authentication:
            raise MechanismError(f"{self._service} did not authenticate itself", hint=ACCEPTOR_DEFECT_HINT)
        return result.token or None

    def _first(self) -> InitSecContextResult:
        """The first gss_init_sec_context, in which libkrb5 gets the ticket for the service."""
        tickets = self._credential.service_tickets
        if tickets is None:
            return self._init(None)
        with tickets:
            return self._init(None)

    def _init(self, token: bytes | None) -> InitSecContextResult:
        return gss_library.sec_contexts.init_sec_context(
            self._target,
            self._credential.handle,
            self._context,
            gss_library.KRB5,
            gss_library.RequirementFlag.mutual_authentication,
            input_token=token,
        )

    def verify_mic(self, message: bytes, mic: bytes) -> None:
        """gss_verify_mic (RFC 2744, 5.36); raises MechanismError with GSS_S_BAD_MIC."""
        assert self._context is not None
        try:
            # The stub wants the friendly layer's class; this is the one it derives from.
            gss_library.message.verify_mic(self._context, message, mic)  # type: ignore[arg-type]
        except gss_library.GSSError as error:
            self._context = None
            raise MechanismError(
                "the acceptor's verifier is not the one of this context: was the reply changed on its way?",
                major=GSS_S_BAD_MIC,
                kind=Kind.BAD_VERIFIER,
                hint=BAD_VERIFIER_HINT,
            ) from error

    def refused(self, major: int, minor: int, token: bytes) -> MechanismError:
        """The acceptor's refusal, in the mechanism's words if it sent an error token."""
        statuses = f"GSS major status 0x{major:08x}, minor {minor}"
        cause: gss_library.Cause | None = None
        if token and self._context is not None and not self.complete:
            # A KRB-ERROR (RFC 4121, 4.1) says more than the two numbers.
            try:
                self._init(token)
            except gss_library.GSSError as error:
                statuses = f"{'; '.join(error.get_all_statuses(error.min_code, False))} ({statuses})"
                cause = gss_library.cause_of(error)
        self._context = None
        reason = f"{self._service} refused {self.name}: {statuses}"
        if cause and cause.kind == Kind.CLOCK_SKEW:
            # The one refusal that is not to be repaired in the acceptor's keytab.
            return MechanismError(reason, errno=cause.errno, major=major, kind=cause.kind, hint=cause.hint)
        family = MechanismError
        tickets = self._credential.service_tickets
        if tickets is not None and tickets.reject():
            # The service's key may have been changed since that ticket was issued.
            family = KeptTicketRefusedError
        return family(
            reason,
            major=major,
            kind=Kind.REFUSED_BY_ACCEPTOR,
            hint="see the acceptor's log; its keytab must have the current key of that service principal",
        )

    def export(self) -> tuple[bytes, int]:
        """The version 2 context of docs/protocol.md 7 and its endtime; uses the context up."""
        assert self._context is not None
        context, self._context = self._context, None
        try:
            lucid = gss_library.ext_krb5.krb5_export_lucid_sec_context(context, 1)
        except gss_library.GSSError as error:
            raise gss_library.explain(error, "cannot export the context", MechanismError) from error
        assert isinstance(lucid, gss_library.ext_krb5.Krb5LucidContextV1)
        keys = lucid.cfx_kd
        if lucid.protocol != 1 or keys is None:
            raise MechanismError(
                "the context's enctype is of the old kind that Lustre does not know",
                kind=Kind.ENCTYPE,
                hint="give the service principal keys of an AES enctype and get new tickets",
            )
        flags = INITIATOR | CFX
        enctype, key = keys.ctx_key_type, keys.ctx_key
        if keys.acceptor_subkey and keys.acceptor_subkey_type:
            flags |= ACCEPTOR_SUBKEY
            enctype, key = keys.acceptor_subkey_type, keys.acceptor_subkey
        derived = rfc3961.derive_lustre_keys(key, enctype)
        assert lucid.endtime is not None and lucid.send_seq is not None
        endtime = int(lucid.endtime)
        exported = Krb5Context(
            endtime=endtime,
            flags=flags,
            send_seq=lucid.send_seq,
            enctype=enctype,
            ke=derived.ke,
            ki=derived.ki,
            kc=derived.kc,
        )
        return exported.pack(), endtime
