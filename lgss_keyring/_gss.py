"""The raw layer of python-gssapi, loaded without its friendly one.

``import gssapi`` runs both, 28 extension modules and ctypes with a search for
Windows libraries: 41 ms here, of which a context needs 28 (measured as whole
processes, medians of 30).  An upcall's caller waits for these, so the two package
objects are made here without running their ``__init__``, and only the five modules
in use are imported below them.

Alternatives weighed: importing the submodules plainly runs both ``__init__`` files
all the same; ctypes over libgssapi would be a second binding to maintain.  What it
rests on is that the raw modules import each other by full name, which is how
Cython compiles them; where ``gssapi`` was imported before (tests, tools, lgssd) that
one is used, and if a future release breaks the assumption, a plain import is the
fall-back.
"""

from __future__ import annotations

import errno
import importlib
import sys
from importlib.machinery import PathFinder

from ._record import Record
from .errors import GSS_S_CREDENTIALS_EXPIRED, GSS_S_NO_CRED, LgssError

TYPE_CHECKING = False


def _bare_package(name: str, path: list[str] | None) -> list[str]:
    spec = PathFinder.find_spec(name, path)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no package {name}")
    # By hand: importlib.util, which could do this, costs 1.3 ms.
    package = sys.modules[name] = type(sys)(name)
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations)
    return package.__path__


def _load() -> None:
    if "gssapi" in sys.modules:
        return
    try:
        _bare_package("gssapi.raw", _bare_package("gssapi", None))
        # In this order: the later ones register themselves with the earlier.
        for name in ("names", "creds", "sec_contexts", "message", "mech_krb5", "ext_cred_store", "ext_krb5"):
            importlib.import_module(f"gssapi.raw.{name}")
    except Exception:
        for name in [name for name in sys.modules if name.partition(".")[0] == "gssapi"]:
            del sys.modules[name]
        importlib.import_module("gssapi")


_load()

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
_TICKET_HINT = "the user has to run kinit, with a cache where this host's krb5.conf has the default one"
CAUSES = {
    _BASE + 6: Cause(errno.ENOKEY, "client-unknown", "create the principal, or correct the keytab"),
    _BASE + 7: Cause(
        errno.EKEYREJECTED,
        "service-unknown",
        "create the service principal, or correct [hosts] or reverse DNS",
    ),
    _BASE + 14: Cause(errno.EKEYREJECTED, "enctype", "give client, service and KDC a common AES enctype"),
    _BASE + 18: Cause(errno.EKEYREVOKED, "client-revoked", "the KDC has locked this principal"),
    _BASE + 23: Cause(errno.EKEYEXPIRED, "password-expired", "the principal's password or key has expired"),
    _BASE + 24: Cause(errno.EKEYREJECTED, "wrong-key", _KEYTAB_HINT),
    _BASE + 31: Cause(errno.EKEYREJECTED, "wrong-key", _KEYTAB_HINT),
    _BASE + 32: Cause(errno.EKEYEXPIRED, "ticket-expired", _TICKET_HINT),
    _BASE + 37: Cause(
        errno.EKEYREJECTED, "clock-skew", "synchronise the clocks of this host, KDC and server"
    ),
    _BASE + 44: Cause(errno.EKEYREJECTED, "wrong-key", _KEYTAB_HINT),
    _BASE + 45: Cause(errno.EKEYREJECTED, "wrong-key", _KEYTAB_HINT),
    _BASE + 141: Cause(errno.ENOKEY, "no-ticket", _TICKET_HINT),
    _BASE + 154: Cause(errno.EHOSTUNREACH, "kdc-unreachable", _KDC_HINT),
    _BASE + 156: Cause(errno.EHOSTUNREACH, "kdc-unreachable", _KDC_HINT),
    _BASE + 181: Cause(errno.ENOKEY, "not-in-keytab", "add the principal to the keytab (kadmin: ktadd)"),
    _BASE + 195: Cause(errno.ENOKEY, "no-ticket", _TICKET_HINT),
    _BASE + 220: Cause(errno.EHOSTUNREACH, "kdc-unreachable", _KDC_HINT),
}


def cause_of(error: GSSError) -> Cause | None:
    """What is known of the mechanism's own status in ``error``."""
    # com_err codes are negative; the minor status is unsigned.
    return CAUSES.get(error.min_code - (1 << 32) if error.min_code >= 1 << 31 else error.min_code)


def explain(error: GSSError, doing: str, family: type[LgssError]) -> LgssError:
    """``error`` in the words of this package, as a ``family`` member.

    ``doing`` says what failed ("cannot ..."); krb5's extended text is kept, and so
    is the major status.
    """
    # The mechanism's own words say more than the major status's, if there are any.
    texts = error.get_all_statuses(*((error.min_code, False) if error.min_code else (error.maj_code, True)))
    cause = cause_of(error)
    routine = error.maj_code & 0xFF << 16
    if cause is None and routine == GSS_S_CREDENTIALS_EXPIRED:
        cause = CAUSES[_BASE + 32]
    if cause is None and routine == GSS_S_NO_CRED:
        cause = Cause(errno.ENOKEY, "no-credential", _TICKET_HINT)
    if cause is None:
        return family(f"{doing}: {'; '.join(texts)}", major=error.maj_code)
    return family(
        f"{doing}: {'; '.join(texts)}",
        errno=cause.errno,
        major=error.maj_code,
        kind=cause.kind,
        hint=cause.hint,
    )
