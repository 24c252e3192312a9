"""The raw layer of python-gssapi, loaded without its friendly one (:mod:`.lean_import`), and what
its errors mean."""

from __future__ import annotations

import errno

from lgss_keyring.formats.errors import (
    ACCEPTOR_DEFECT_HINT,
    GSS_S_CREDENTIALS_EXPIRED,
    GSS_S_DEFECTIVE_TOKEN,
    GSS_S_NO_CRED,
    Kind,
    LgssError,
)
from lgss_keyring.formats.record import Record
from lgss_keyring.worker import lean_import

# In this order: the later ones register themselves with the earlier.
lean_import.load(
    "gssapi.raw", ("names", "creds", "sec_contexts", "message", "mech_krb5", "ext_cred_store", "ext_krb5")
)

from gssapi.raw import creds, ext_cred_store, ext_krb5, message, names, sec_contexts  # noqa: E402
from gssapi.raw.misc import GSSError  # noqa: E402
from gssapi.raw.types import MechType, NameType, RequirementFlag  # noqa: E402

__all__ = [
    "KRB5",
    "GSSError",
    "MechType",
    "NameType",
    "RequirementFlag",
    "cause_of",
    "creds",
    "explain",
    "ext_cred_store",
    "ext_krb5",
    "message",
    "names",
    "sec_contexts",
    "shown_name",
]

KRB5 = MechType.kerberos


class Cause(Record):
    """What a krb5 error means for the caller and for the administrator."""

    errno: int
    kind: str
    hint: str


# Minor statuses of the krb5 mechanism are com_err codes, counted from
# KRB5KDC_ERR_NONE (RFC 4120, 7.5.9 for the protocol's own).
_BASE = -1765328384
_KDC_HINT = "check that the realm's KDC runs and is reachable from here, and [realms] in krb5.conf"
_KEYTAB_HINT = "compare `klist -ke` of the keytab with the principal's key version and enctypes in the KDC"
TICKET_HINT = "the user has to run kinit, with a cache where this host's krb5.conf has the default one"
_SERVICE_LOCKED = Cause(
    errno.EKEYREJECTED,
    Kind.SERVICE_LOCKED,
    "the KDC gives no tickets for this service principal: kadmin modprinc +allow_svr +allow_tix SERVICE/HOST",
)
CAUSES = {
    _BASE + 1: Cause(
        errno.EKEYEXPIRED,
        Kind.CLIENT_EXPIRED,
        "the principal's time is over: kadmin modprinc -expire never PRINCIPAL",
    ),
    _BASE + 2: Cause(
        errno.EKEYEXPIRED,
        Kind.SERVICE_EXPIRED,
        "the service principal's time is over: kadmin modprinc -expire never SERVICE/HOST",
    ),
    _BASE + 6: Cause(errno.ENOKEY, Kind.CLIENT_UNKNOWN, "create the principal, or correct the keytab"),
    _BASE + 7: Cause(
        errno.EKEYREJECTED,
        Kind.SERVICE_UNKNOWN,
        "create the service principal; or unlock it, if it is there (a locked one is not found either: "
        "kadmin modprinc +allow_tix SERVICE/HOST); or correct the host's name in reverse DNS or [hosts]",
    ),
    _BASE + 14: Cause(errno.EKEYREJECTED, Kind.ENCTYPE, "give client, service and KDC a common AES enctype"),
    _BASE + 18: Cause(
        errno.EKEYREVOKED,
        Kind.CLIENT_REVOKED,
        "the KDC has locked this principal: kadmin modprinc +allow_tix PRINCIPAL, or after too many wrong "
        "passwords modprinc -unlock PRINCIPAL",
    ),
    _BASE + 19: _SERVICE_LOCKED,
    _BASE + 23: Cause(
        errno.EKEYEXPIRED,
        Kind.PASSWORD_EXPIRED,
        "the principal's key is too old for the KDC, or has to be changed: kadmin ktadd makes a new one; or "
        "kadmin modprinc -pwexpire never -needchange PRINCIPAL",
    ),
    _BASE + 24: Cause(errno.EKEYREJECTED, Kind.WRONG_KEY, _KEYTAB_HINT),
    _BASE + 27: _SERVICE_LOCKED,
    _BASE + 31: Cause(errno.EKEYREJECTED, Kind.WRONG_KEY, _KEYTAB_HINT),
    _BASE + 32: Cause(errno.EKEYEXPIRED, Kind.TICKET_EXPIRED, TICKET_HINT),
    _BASE + 37: Cause(
        errno.EKEYREJECTED, Kind.CLOCK_SKEW, "synchronise the clocks of this host, KDC and server"
    ),
    _BASE + 44: Cause(errno.EKEYREJECTED, Kind.WRONG_KEY, _KEYTAB_HINT),
    _BASE + 45: Cause(errno.EKEYREJECTED, Kind.WRONG_KEY, _KEYTAB_HINT),
    _BASE + 141: Cause(errno.ENOKEY, Kind.NO_TICKET, TICKET_HINT),
    _BASE + 154: Cause(errno.EHOSTUNREACH, Kind.KDC_UNREACHABLE, _KDC_HINT),
    _BASE + 156: Cause(errno.EHOSTUNREACH, Kind.KDC_UNREACHABLE, _KDC_HINT),
    _BASE + 181: Cause(errno.ENOKEY, Kind.NOT_IN_KEYTAB, "add the principal to the keytab (kadmin: ktadd)"),
    _BASE + 195: Cause(errno.ENOKEY, Kind.NO_TICKET, TICKET_HINT),
    _BASE + 220: Cause(errno.EHOSTUNREACH, Kind.KDC_UNREACHABLE, _KDC_HINT),
    _BASE + 224: Cause(
        errno.EINVAL,
        Kind.KRB5_CONF,
        "set default_realm in [libdefaults] of krb5.conf, or -R REALM in the request-key rule",
    ),
}


def shown_name(name: names.Name | None) -> str:
    """``name`` for people."""
    return names.display_name(name).name.decode("utf-8", "replace") if name else "?"


def cause_of(error: GSSError) -> Cause | None:
    """What is known of the mechanism's own status in ``error``."""
    # com_err codes are negative; the minor status is unsigned.
    return CAUSES.get(error.min_code - (1 << 32) if error.min_code >= 1 << 31 else error.min_code)


def explain(error: GSSError, problem: str, family: type[LgssError]) -> LgssError:
    """``error`` in the words of this package, as a ``family`` member.

    ``problem`` says what failed ("cannot ...").  krb5's extended text and the major status are
    kept.
    """
    # The minor status's text says more than the major status's, if there is any. For an expired
    # credential there is none, or it is "Success".
    texts = error.get_all_statuses(error.min_code, False) if error.min_code else []
    if not texts or texts == ["Success"]:
        texts = error.get_all_statuses(error.maj_code, True)
    cause = cause_of(error)
    routine = error.maj_code & 0xFF << 16
    if cause is None and routine == GSS_S_CREDENTIALS_EXPIRED:
        cause = CAUSES[_BASE + 32]
    if cause is None and routine == GSS_S_NO_CRED:
        cause = Cause(errno.ENOKEY, Kind.NO_CREDENTIAL, TICKET_HINT)
    if cause is None:
        hint = ACCEPTOR_DEFECT_HINT if routine == GSS_S_DEFECTIVE_TOKEN else None
        return family(f"{problem}: {'; '.join(texts)}", major=error.maj_code, hint=hint)
    return family(
        f"{problem}: {'; '.join(texts)}",
        errno=cause.errno,
        major=error.maj_code,
        kind=cause.kind,
        hint=cause.hint,
    )
