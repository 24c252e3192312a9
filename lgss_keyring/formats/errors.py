"""The one family of errors.

Each error has an errno for the caller of request_key(2), a GSS major status (RFC 2743,
1.2.1.1; 0 where GSS-API was not involved) for the kernel, and for the administrator a sentence
that says what happened and one that says what to do.  Native errors are kept as ``__cause__``.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

# Routine errors of RFC 2744, 3.9.1, in the upper half's low byte (value << 16).
GSS_S_BAD_MECH = 1 << 16
GSS_S_BAD_MIC = 6 << 16
GSS_S_NO_CRED = 7 << 16
GSS_S_DEFECTIVE_TOKEN = 9 << 16
GSS_S_CREDENTIALS_EXPIRED = 11 << 16
GSS_S_FAILURE = 13 << 16
GSS_S_BAD_QOP = 14 << 16
GSS_S_UNAUTHORIZED = 15 << 16
GSS_S_CONTEXT_EXPIRED = 12 << 16
GSS_S_NO_CONTEXT = 8 << 16
# Supplementary bits (RFC 2744, 3.9.1); for per-message calls of ours they are failures.
GSS_S_DUPLICATE_TOKEN = 1 << 1
GSS_S_OLD_TOKEN = 1 << 2


SHORTAGE = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT})
"""What the kernel says when it has no more processes, memory, descriptors or key quota."""
SHORTAGE_HINT = (
    "a limit of processes, memory, descriptors or keys (/proc/sys/kernel/keys) was reached: "
    "of this machine, or of the requestor"
)
BAD_VERIFIER_HINT = "the reply was changed on its way, or the acceptor has a defect: see its log"
ACCEPTOR_DEFECT_HINT = "the acceptor has a defect, or another service listens there: see its log"


# The texts of glibc's dynamic loader when mmap(2) fails. dlopen(3) gives no errno, so an
# ImportError, or an OSError of ctypes, has nothing but these.
_LOADER_TEXTS = ("failed to map segment", "cannot map zero-fill pages", "cannot allocate memory")


def shortage(error: BaseException | None) -> int:
    """The errno of the shortage that ``error``, or an error behind it, comes from.

    0 if there is none: then ``error`` may be a defect of ours.  ENOMEM stands for EAGAIN, which
    would ask the caller to try the same again.
    """
    while error is not None:
        text = str(error)
        if isinstance(error, OSError) and error.errno in SHORTAGE:
            return errno.ENOMEM if error.errno == errno.EAGAIN else error.errno
        # This text is all that CPython gives of a pthread_create(3) that failed.
        no_thread = isinstance(error, RuntimeError) and "start new thread" in text
        not_loaded = isinstance(error, ImportError | OSError) and any(
            each in text.lower() for each in _LOADER_TEXTS
        )
        if no_thread or not_loaded or isinstance(error, MemoryError):
            return errno.ENOMEM
        error = error.__cause__ or error.__context__
    return 0


class Kind:
    """The short stable names of causes, for logs and tests; docs/errors.md explains each."""

    BAD_ARGUMENTS = "bad-arguments"
    KILLED = "killed"
    BAD_REQUEST = "bad-request"
    REFUSED = "refused"
    NAMESPACE = "namespace"
    CONFIG = "config"
    KRB5_CONF = "krb5-conf"
    NO_HOST_NAME = "no-host-name"
    NAME = "name"
    NAME_TIMEOUT = "name-timeout"
    NO_TICKET = "no-ticket"
    CACHE_UNUSABLE = "cache-unusable"
    NO_CREDENTIAL = "no-credential"
    TICKET_EXPIRED = "ticket-expired"
    KEYTAB_MISSING = "keytab-missing"
    KEYTAB_UNREADABLE = "keytab-unreadable"
    NOT_IN_KEYTAB = "not-in-keytab"
    CLIENT_UNKNOWN = "client-unknown"
    CLIENT_REVOKED = "client-revoked"
    CLIENT_EXPIRED = "client-expired"
    PASSWORD_EXPIRED = "password-expired"  # noqa: S105 (no password)
    WRONG_KEY = "wrong-key"
    SERVICE_UNKNOWN = "service-unknown"
    SERVICE_LOCKED = "service-locked"
    SERVICE_EXPIRED = "service-expired"
    CLOCK_SKEW = "clock-skew"
    ENCTYPE = "enctype"
    KDC_UNREACHABLE = "kdc-unreachable"
    MECHANISM = "mechanism"
    MECHANISM_UNSUPPORTED = "mechanism-unsupported"
    REFUSED_BY_ACCEPTOR = "refused-by-acceptor"
    NO_LUSTRE = "no-lustre"
    INIT_CHANNEL = "init-channel"
    TARGET_GONE = "target-gone"
    SECURITY_CHANGED = "security-changed"
    TICKET_TOO_BIG = "ticket-too-big"
    REFUSED_BY_SERVER = "refused-by-server"
    RPC_FAILED = "rpc-failed"
    ACCEPTOR_UNREACHABLE = "acceptor-unreachable"
    ACCEPTOR_SILENT = "acceptor-silent"
    ACCEPTOR_CLOSED = "acceptor-closed"
    MALFORMED_REPLY = "malformed-reply"
    RPC_REFUSED = "rpc-refused"
    RPC_DENIED = "rpc-denied"
    START_AGAIN = "start-again"
    BAD_VERIFIER = "bad-verifier"
    CHANNEL = "channel"
    LIMIT = "limit"
    WORKER_DIED = "worker-died"
    WORKER_PROTOCOL = "worker-protocol"
    RESOURCES = "resources"
    TOO_MANY_UPCALLS = "too-many-upcalls"
    KEY = "key"
    UNTAKEN = "untaken"
    INTERNAL = "internal"
    PAYLOAD = "payload"
    REQUEST = "request"
    UPCALL = "upcall"
    CONTEXT = "context"
    FLAVOR = "flavor"
    POLICY = "policy"
    REPLAY = "replay"
    BUFFER = "buffer"
    DESCRIPTORS = "descriptors"


class LgssError(Exception):
    """Base of all errors of this package.

    ``reason`` is one sentence for an administrator, without secrets; ``errno`` a
    positive errno (default by class); ``major`` a GSS major status or 0;
    ``hint`` what to do, one sentence or empty; ``kind`` a short stable
    word for logs and tests; ``cache`` the path of the credential cache whose change may
    end it, or empty.
    """

    default_errno: ClassVar[int] = errno.EIO
    default_major: ClassVar[int] = 0
    default_hint: ClassVar[str] = ""
    default_kind: ClassVar[str] = Kind.INTERNAL

    def __init__(
        self,
        reason: str,
        *,
        errno: int | None = None,
        major: int | None = None,
        hint: str | None = None,
        kind: str | None = None,
        cache: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.errno = self.default_errno if errno is None else errno
        self.major = self.default_major if major is None else major
        self.hint = self.default_hint if hint is None else hint
        self.kind = self.default_kind if kind is None else kind
        self.cache = cache

    def __str__(self) -> str:
        return f"{self.reason}; {self.hint}" if self.hint else self.reason


class RequestError(LgssError):
    """The request itself is malformed: arguments, callout info, description."""

    default_errno = errno.EINVAL
    default_kind = Kind.BAD_REQUEST
    default_hint = "nothing to repair here if no Lustre client made this request: any local user can send one"


class RefusedError(LgssError):
    """The request is well-formed, but the requestor may not ask for this."""

    default_errno = errno.EACCES
    default_major = GSS_S_UNAUTHORIZED
    default_kind = Kind.REFUSED


class ConfigError(LgssError):
    """The configuration file cannot be used."""

    default_errno = errno.EINVAL
    default_kind = Kind.CONFIG


class ResolutionError(LgssError):
    """A NID or host name cannot be turned into the peer's address or name."""

    default_errno = errno.EHOSTUNREACH
    default_kind = Kind.NAME


class CredentialError(LgssError):
    """There is no usable credential for the initiator."""

    default_errno = errno.ENOKEY
    default_major = GSS_S_NO_CRED
    default_kind = Kind.NO_CREDENTIAL


class MechanismError(LgssError):
    """The mechanism failed: KDC, ticket, token, enctype."""

    default_errno = errno.EACCES
    default_major = GSS_S_FAILURE
    default_kind = Kind.MECHANISM


class ChannelError(LgssError):
    """The exchange with the acceptor failed: connection, RPC, malformed reply."""

    default_errno = errno.ECONNREFUSED
    default_kind = Kind.CHANNEL


class PayloadError(LgssError):
    """Bytes that are not a valid key payload or context."""

    default_errno = errno.EBADMSG
    default_kind = Kind.PAYLOAD


class KeyOperationError(LgssError):
    """A key operation failed; ``errno`` is the kernel's."""

    default_kind = Kind.KEY


class LimitError(LgssError):
    """A time limit of ours was hit; the reason names it, the hint the setting."""

    default_errno = errno.ETIMEDOUT
    default_kind = Kind.LIMIT


def ticket_too_big(size: int) -> ChannelError:
    """The error for a token of ``size`` bytes that Lustre cannot carry to its server."""
    return ChannelError(
        f"the ticket is too big: it makes a token of {size} bytes, and Lustre carries 16384 with all that "
        "goes with it",
        errno=errno.E2BIG,
        kind=Kind.TICKET_TOO_BIG,
        hint="fewer groups in its PAC: put the user into fewer, or let the KDC leave the PAC out for the "
        "service principals of Lustre (MIT: kadmin modprinc +no_auth_data_required)",
    )
