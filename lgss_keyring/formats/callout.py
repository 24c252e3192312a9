"""The request: the arguments of an upcall, parsed strictly, and whether to believe it.

All of it is hostile until checked (docs/security.md, "Whom we believe"): any local user can
call request_key(2) with any description and callout info.  The uid and gid of the
requestor alone come from the kernel.
"""

from __future__ import annotations

from lgss_keyring.formats.errors import RefusedError, RequestError
from lgss_keyring.formats.nid import ipv6_nid_of_mgc
from lgss_keyring.formats.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CALLOUT_LIMIT = 1023
MECHANISM_LIMIT = 15
OBD_NAME_LIMIT = 127
"""Bytes that a kernel may send; init_channel keeps 63 of them (docs/protocol.md 2)."""
FIELDS_BEFORE_OBD_NAME = 8
MECHANISMS = ("krb5", "gssnull", "sk")
KEY_TYPES = ("lgssc", "user")
USER_PREFIX = "lgss:"

INT_MAX = 2**31 - 1
# To setresuid(2) the id (uid_t)-1 means "leave it as it is", so the worker would stay root.
ID_MAX = 2**32 - 2
NID_MAX = 2**64 - 1


class Callout(Record):
    """Callout info (docs/protocol.md 2), field by field."""

    secid: int
    mechanism: str
    uid: int
    gid: int
    flags: str
    service_type: str
    lustre_service: int
    target_nid: int
    obd_name: str
    self_nid: int
    pid: int
    client_uuid: str | None


class UpcallRequest(Callout):
    """One upcall: its callout info, and the arguments of docs/protocol.md 1 beside it.

    ``realm``: of the machine's own principals, from ``-R``.
    """

    key: int
    key_type: str
    description: str
    requestor_uid: int
    requestor_gid: int
    thread_keyring: int
    process_keyring: int
    session_keyring: int
    realm: str | None

    @property
    def keyrings(self) -> tuple[int, int, int]:
        """The serials of the requestor's keyrings; 0 for one that it does not have."""
        return self.session_keyring, self.thread_keyring, self.process_keyring

    @property
    def is_machine(self) -> bool:
        """Whether the machine's credential is asked for, by any flag."""
        return bool(self.flags)

    @property
    def speaker(self) -> str:
        """What stands before the words of this request's worker: an ordinary user's is under that user's
        control, and a line of the log must not read as if root's process had found this out."""
        return "" if self.is_machine else f"worker of uid {self.uid} says: "

    @property
    def target(self) -> str:
        """The target, for logs."""
        return f"{self.obd_name}@0x{self.target_nid:x}"


def parse_request(arguments: Sequence[str], realm: str | None = None) -> UpcallRequest:
    """Parse the ten arguments of docs/protocol.md 1, from ``create`` on.

    Raises RequestError, its reason naming the argument or field.
    """
    if len(arguments) != 10:
        raise RequestError(f"10 arguments are needed, {len(arguments)} were given")
    operation, key, key_type, description, callout, uid, gid, thread, process, session = arguments
    if operation != "create":
        raise RequestError(f"operation {_quoted(operation)} is not `create`")
    if key_type not in KEY_TYPES:
        raise RequestError(f"key type {_quoted(key_type)} is none of {', '.join(KEY_TYPES)}")
    if key_type == "user" and not description.startswith(USER_PREFIX):
        raise RequestError(f"description {_quoted(description)} does not begin with {USER_PREFIX}")
    return UpcallRequest(
        **parse_callout(callout).__dict__,
        key=_number("key serial", key, 1, INT_MAX),
        key_type=key_type,
        description=description,
        requestor_uid=_number("requestor's uid", uid, 0, ID_MAX),
        requestor_gid=_number("requestor's gid", gid, 0, ID_MAX),
        thread_keyring=_number("thread keyring", thread, 0, INT_MAX),
        process_keyring=_number("process keyring", process, 0, INT_MAX),
        session_keyring=_number("session keyring", session, 0, INT_MAX),
        realm=realm,
    )


def parse_callout(text: str) -> Callout:
    """Parse callout info; raises RequestError, its reason naming the field."""
    # Bytes of an argument that are not UTF-8 are surrogates in Python; these fail here, too.
    if not (text.isascii() and text.isprintable()):
        raise RequestError(f"callout info has bytes that are not printable ASCII: {_quoted(text)}")
    if len(text) > CALLOUT_LIMIT:
        raise RequestError(f"callout info has {len(text)} bytes, more than {CALLOUT_LIMIT}")
    before, obd_name, own, pid, client_uuid = _split(text)
    secid, mechanism, uid, gid, flags, service_type, service, target = before
    if len(mechanism) > MECHANISM_LIMIT or mechanism not in MECHANISMS:
        raise RequestError(f"mechanism {_quoted(mechanism)} is none of {', '.join(MECHANISMS)}")
    if len(set(flags)) != len(flags) or not set(flags) <= set("rmo"):
        raise RequestError(f"flags {_quoted(flags)} are not a set of r, m, o")
    if len(service_type) != 1 or service_type not in "naip-":
        raise RequestError(f"service type {_quoted(service_type)} is none of n, a, i, p, -")
    if not 1 <= len(obd_name) <= OBD_NAME_LIMIT:
        raise RequestError(f"obd name has {len(obd_name)} bytes, not 1 to {OBD_NAME_LIMIT}")
    return Callout(
        _number("secid", secid, -(2**31), INT_MAX),
        mechanism,
        _number("uid", uid, 0, ID_MAX),
        _number("gid", gid, 0, ID_MAX),
        flags,
        service_type,
        _number("Lustre service", service, 0, 2),
        _number("target NID", target, 0, NID_MAX),
        obd_name,
        _number("own NID", own, 0, NID_MAX),
        _number("pid", pid, 0, INT_MAX),
        client_uuid,
    )


def _split(text: str) -> tuple[list[str], str, str, str, str | None]:
    """Callout info as fields 0 to 7, obd name, own NID, pid and client uuid.

    11 fields have no uuid, and 12 have one.  There are more only if the obd name has colons, which
    only that of an MGC with an IPv6 NID has.  Then the first eight fields are counted from the
    left, and the last three (or two, without a uuid) from the right.  What lies between must be
    such a name.  It ends with its network, so only one of the two ways to count fits.
    Raises RequestError.
    """
    fields = text.split(":")
    for after, has_uuid in ((3, True), (2, False)):
        between = fields[FIELDS_BEFORE_OBD_NAME:-after]
        obd_name = ":".join(between)
        if len(between) == 1 or ipv6_nid_of_mgc(obd_name):
            own, pid, *rest = fields[-after:]
            return fields[:FIELDS_BEFORE_OBD_NAME], obd_name, own, pid, rest[0] if has_uuid else None
    raise RequestError(f"callout info has {len(fields)} fields instead of 11 or 12")


def format_callout(
    *,
    secid: int = 0,
    mechanism: str = "krb5",
    uid: int,
    gid: int,
    flags: str = "",
    service_type: str = "-",
    lustre_service: int,
    target_nid: int,
    obd_name: str,
    self_nid: int = 0,
    pid: int = 0,
    client_uuid: str | None = None,
) -> str:
    """Callout info as a kernel writes it, the inverse of :func:`parse_callout`; nothing
    is checked."""
    fields = [str(secid), mechanism, str(uid), str(gid), flags, service_type, str(lustre_service)]
    fields += [f"0x{target_nid:x}", obd_name, f"0x{self_nid:x}", str(pid)]
    return ":".join(fields if client_uuid is None else [*fields, client_uuid])


def authorize(request: UpcallRequest) -> None:
    """Check ``request`` against the table of docs/security.md, "Whom we believe", but for its rows on
    namespaces; raises RefusedError."""
    if request.requestor_uid == 0:
        return
    requestor = f"uid {request.requestor_uid}"
    if request.is_machine:
        # Lustre itself asks for machine contexts from within ordinary users'
        # processes; forged, such a request gains nothing, as no context is bound to
        # its key. A `user` key, though, could be read by the user that asked. Lustre
        # asks for contexts of uid 0 in this way, and for no others.
        if request.key_type != "lgssc" or request.uid != 0:
            raise RefusedError(
                f"{requestor} may not ask for the machine's credential (flags {request.flags})",
                hint="only root may; if no program of yours asks for this, that user tries something",
            )
        return
    if request.uid != request.requestor_uid:
        raise RefusedError(
            f"{requestor} may not ask for a context of uid {request.uid}",
            hint="only root may; if no program of yours asks for this, that user tries something",
        )


def _number(name: str, text: str, low: int, high: int) -> int:
    """A number in decimal or 0x-hex and nothing else: garbage must not become uid 0
    (docs/security.md, "What programs of this kind taught")."""
    digits = text[1:] if low < 0 and text[:1] == "-" else text
    # The longest number is one of 64 bits in decimal. int() of a long text would be slow.
    if digits.isascii() and len(digits) <= 20:
        if digits[:2] in ("0x", "0X") and digits[2:] and not set(digits[2:]) - set("0123456789abcdefABCDEF"):
            value = int(digits[2:], 16)
        elif digits.isdecimal():
            value = int(digits)
        else:
            raise RequestError(f"{name} {_quoted(text)} is not a number")
        value = -value if digits is not text else value
        if low <= value <= high:
            return value
        raise RequestError(f"{name} {_quoted(text)} is out of range")
    raise RequestError(f"{name} {_quoted(text)} is not a number")


def _quoted(text: str) -> str:
    escaped = ascii(text[:40])
    return escaped[:60] + ("..." if len(text) > 40 or len(escaped) > 60 else "")
