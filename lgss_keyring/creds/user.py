"""The credential of an ordinary user: the default ccache, as libkrb5 computes it for
the uid that this process has become."""

from __future__ import annotations

from .. import _gss
from ..errors import CredentialError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callout import UpcallRequest
    from ..config import Config


def acquire(request: UpcallRequest, config: Config) -> _gss.creds.Creds:
    """A credential handle for initiating (RFC 2743, 2.1.1).

    Raises CredentialError: no cache, an expired ticket, an unreadable one.
    """
    try:
        return _gss.creds.acquire_cred(None, mechs=[_gss.KRB5], usage="initiate").creds
    except _gss.GSSError as error:
        raise _gss.explain(
            error, f"uid {request.uid} has no usable Kerberos credential", CredentialError
        ) from error
