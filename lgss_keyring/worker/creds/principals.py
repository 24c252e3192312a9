"""Which principals may stand for this machine (docs/protocol.md 4, root credentials)."""

from __future__ import annotations

from lgss_keyring.formats.errors import ConfigError, LgssError
from lgss_keyring.worker import krb5_library, names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config

# First components, by the flag in field 4; lustre_mgs for any flag, but from a cache only.
FIRST_COMPONENTS = {
    "r": (b"lustre_root", b"host", b"lustre_role"),
    "m": (b"lustre_mds",),
    "o": (b"lustre_oss",),
}
FROM_CACHE_ONLY = b"lustre_mgs"
ANY_SECOND_COMPONENT = b"lustre_role"
HOSTLESS_IN_KEYTAB = (b"lustre_root", b"host")
COMPONENTS_AT_MOST = 3  # the third is the name of a nodemap and is not compared


class MachinePrincipals:
    """The rule for one request; it asks the name service only if the answer depends on it."""

    def __init__(
        self,
        flags: str,
        realm: bytes,
        own_host: Callable[[], bytes],
        only: str = "",
        host_source: Callable[[], str] = str,
    ) -> None:
        """``flags``: of field 4; ``own_host`` gives this node's host name in small letters, or
        raises ResolutionError; ``only``: the one principal that the configuration allows;
        ``host_source`` says in words where the host name comes from."""
        self._flags = flags
        self._first_components = {name for flag in flags for name in FIRST_COMPONENTS[flag]}
        self._realm = realm
        self._find_own_host = own_host
        self._own_host: bytes | None = None
        self._only = only
        self._host_source = host_source

    def accepts(self, principal: krb5_library.Principal, from_cache: bool = False) -> bool:
        """Whether ``principal``, of a cache or else of a keytab, may stand for this machine.

        Raises ResolutionError if this node's name is needed and unknown.
        """
        if self._only:
            return str(principal) == self._only
        return self.fits(principal.components, principal.realm, from_cache)

    def fits(self, components: Sequence[bytes], realm: bytes, from_cache: bool) -> bool:
        """The rule of docs/protocol.md 4 for a principal in parts; raises as :meth:`accepts`."""
        if realm.lower() != self._realm.lower() or not 1 <= len(components) <= COMPONENTS_AT_MOST:
            return False
        first = components[0]
        if first not in self._first_components and not (from_cache and first == FROM_CACHE_ONLY):
            return False
        if len(components) == 1:
            return self._flags == "r" if from_cache else first in HOSTLESS_IN_KEYTAB
        return first == ANY_SECOND_COMPONENT or components[1].lower() == self._host()

    def advice(self, others: Sequence[tuple[Sequence[bytes], bytes]]) -> str:
        """What to do where a keytab has none of these principals, but ``others`` (components and
        realm of each)."""
        create = "create one of them and add it to the keytab (kadmin: addprinc -randkey, ktadd)"
        if self._only:
            return "add it to the keytab (kadmin: ktadd), or correct [krb5] principal"
        own = self._realm.lower()
        try:
            realms = {
                realm
                for parts, realm in others
                if realm.lower() != own and self.fits(parts, self._realm, from_cache=False)
            }
            hosts = {
                parts[1].decode("utf-8", "replace")
                for parts, realm in others
                if realm.lower() == own and len(parts) > 1 and parts[0] in self._first_components
            }
            if realms:
                other = sorted(realms)[0].decode("utf-8", "replace")
                return (
                    f"the keytab is of realm {other}: set default_realm of krb5.conf to it, "
                    f"or -R {other} in the request-key rule"
                )
            if hosts:
                host = self._host().decode("ascii", "replace")
                return (
                    f"the keytab is for {', '.join(sorted(hosts)[:3])}, and this host's name {host} comes "
                    f"from {self._host_source()}: correct it there, or {create}"
                )
        except LgssError:
            pass  # this host's name is unknown
        return create

    def _host(self) -> bytes:
        if self._own_host is None:
            self._own_host = self._find_own_host()
        return self._own_host

    def __str__(self) -> str:
        """The principals that would do, for people."""
        if self._only:
            return self._only
        try:
            host = self._host().decode("ascii", "replace")
        except LgssError:
            host = "HOST"
        accepted = sorted(f"{name.decode()}/{host}" for name in self._first_components)
        return f"{', '.join(accepted)} (realm {self._realm.decode('utf-8', 'replace')})"


def for_request(context: krb5_library.Context, request: UpcallRequest, config: Config) -> MachinePrincipals:
    """The rule for ``request``; raises ConfigError if this machine has no default realm,
    or if [krb5] principal is not a principal's name."""

    def own_host() -> bytes:
        return names.own_name(request.self_nid, config).lower().encode("ascii", "replace")

    realm = request.realm.encode("utf-8", "surrogateescape") if request.realm else None
    try:
        realm = realm or krb5_library.get_default_realm(context)
    except krb5_library.Krb5Error as error:
        raise krb5_library.explain(error, "this machine has no default realm", ConfigError) from error
    only = config.krb5.principal
    if only:
        try:
            only = str(krb5_library.parse_name_flags(context, only.encode()))
        except krb5_library.Krb5Error as error:
            problem = f"[krb5] principal {only} is no principal"
            raise krb5_library.explain(error, problem, ConfigError) from error
    return MachinePrincipals(
        request.flags, realm, own_host, only, lambda: names.own_name_source(request.self_nid, config)
    )
