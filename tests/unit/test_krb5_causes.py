"""The errors of libkrb5 that have a kind: by libkrb5's own words for their numbers."""

from __future__ import annotations

import ctypes
import errno

import pytest

from lgss_keyring.formats.errors import CredentialError
from lgss_keyring.worker import gss_library, krb5_library
from tests.support import table

KINDS = {
    "Client's entry in database has expired": "client-expired",
    "Server's entry in database has expired": "service-expired",
    "Client not found in Kerberos database": "client-unknown",
    "Server not found in Kerberos database": "service-unknown",
    "KDC has no support for encryption type": "enctype",
    "Client's credentials have been revoked": "client-revoked",
    "Credentials for server have been revoked": "service-locked",
    "Password has expired": "password-expired",
    "Preauthentication failed": "wrong-key",
    "Server principal valid for user2user only": "service-locked",
    "Decrypt integrity check failed": "wrong-key",
    "Ticket expired": "ticket-expired",
    "Clock skew too great": "clock-skew",
    "Key version is not available": "wrong-key",
    "Service key not available": "wrong-key",
    "Matching credential not found": "no-ticket",
    "Cannot find KDC for requested realm": "kdc-unreachable",
    "Cannot contact any KDC for requested realm": "kdc-unreachable",
    "Key table entry not found": "not-in-keytab",
    "No credentials cache found": "no-ticket",
    "Cannot resolve network address for KDC in requested realm": "kdc-unreachable",
    "Configuration file does not specify default realm": "krb5-conf",
}
FIRST = -1765328384
"""Of libkrb5's own errors (com_err)."""


def words(code: int) -> str:
    """libkrb5's words for its error ``code``."""
    krb5_library.new_context()  # loads the library
    library = ctypes.CDLL("libkrb5.so.3")
    library.krb5_get_error_message.restype = ctypes.c_char_p
    context = ctypes.c_void_p()
    assert library.krb5_init_context(ctypes.byref(context)) == 0
    try:
        text: bytes = library.krb5_get_error_message(context, ctypes.c_int32(code))
        return text.decode()
    finally:
        library.krb5_free_context(context)


def test_kind_and_errno_of_each_error() -> None:
    """Each kind's errno is as docs/errors.md says."""
    found = {}
    for code in range(FIRST, FIRST + 256):
        cause = gss_library.cause_of(gss_library.GSSError(13 << 16, code & 0xFFFFFFFF))
        if cause is not None:
            found[words(code)] = cause.kind
            assert errno.errorcode[cause.errno] in table.ROWS[cause.kind].errnos, code
            assert cause.hint
    assert found == KINDS


@pytest.mark.parametrize("number", [6, 18, 156])
def test_an_error_is_told_with_its_kind(number: int) -> None:
    cause = gss_library.CAUSES[FIRST + number]
    error = gss_library.GSSError(13 << 16, (FIRST + number) & 0xFFFFFFFF)
    told = gss_library.explain(error, "cannot", CredentialError)
    assert (told.kind, told.errno, told.major, told.hint) == (cause.kind, cause.errno, 13 << 16, cause.hint)
