"""The configuration's shape, with defaults that need no file; see lgss_keyring.toml(5).

:mod:`lgss_keyring.system.config_file` reads the file.
"""

from __future__ import annotations

from lgss_keyring.formats.errors import ConfigError
from lgss_keyring.formats.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Log(Record):
    """Section [log]."""

    file: str = ""
    level: str = "info"


class Upcall(Record):
    """Section [upcall]; ``timeout`` in seconds; ``containers``: whether processes in other
    mount or network namespaces are served."""

    timeout: int = 30
    containers: bool = True


class Krb5(Record):
    """Section [krb5]; empty: ``config`` as libkrb5 finds it, ``ccache`` root's default
    one, ``principal`` by docs/protocol.md 4.  ``ccache_directory`` is where we keep machine
    tickets; made if its parent is there."""

    config: str = ""
    keytab: str = "/etc/krb5.keytab"
    ccache: str = ""
    principal: str = ""
    ccache_directory: str = "/run/lgss"


class ContainerKrb5(Krb5):
    """[krb5] for the machine's credential of a container: ``keytab`` is the container's,
    already open, and no cache of this host may be used."""


class Names(Record):
    """Section [names]: how a NID becomes the host name of a service principal.

    ``reverse_dns``: ask the resolver where [hosts] does not know; ``canonicalize``: let
    libkrb5 do with the name what krb5.conf says; ``timeout`` in seconds for one name;
    ``program`` for networks of type ptl4 (docs/protocol.md 3).
    """

    reverse_dns: bool = True
    canonicalize: bool = True
    timeout: int = 10
    program: str = "/etc/lustre/nid2hostname"


class Lustre(Record):
    """Section [lustre]: ``parameters`` the directory of Lustre's parameters (empty: where
    docs/protocol.md 6 says), ``reply_timeout`` in seconds for one write to init_channel."""

    parameters: str = ""
    reply_timeout: int = 100


class RpcsecGss(Record):
    """Section [rpcsec_gss]; timeouts in seconds."""

    program: int = 0x20004C47
    version: int = 1
    port: int = 20988
    connect_timeout: int = 5
    reply_timeout: int = 10


class Sptlrpc(Record):
    """Section [sptlrpc]: ``policy`` of programs that do not choose one themselves."""

    policy: str = "keyring"


class Config(Record):
    """All sections; ``hosts`` maps NIDs, addresses, targets and this host to host names."""

    log: Log = Log()
    upcall: Upcall = Upcall()
    krb5: Krb5 = Krb5()
    rpcsec_gss: RpcsecGss = RpcsecGss()
    names: Names = Names()
    lustre: Lustre = Lustre()
    sptlrpc: Sptlrpc = Sptlrpc()
    hosts: Mapping[str, str] = {}


SECTIONS: dict[str, type[Log | Upcall | Krb5 | RpcsecGss | Names | Lustre | Sptlrpc]] = {
    "log": Log,
    "upcall": Upcall,
    "krb5": Krb5,
    "rpcsec_gss": RpcsecGss,
    "names": Names,
    "lustre": Lustre,
    "sptlrpc": Sptlrpc,
}
RANGES = {
    ("upcall", "timeout"): (1, 3600),
    ("rpcsec_gss", "program"): (0, 2**32 - 1),
    ("rpcsec_gss", "version"): (0, 2**32 - 1),
    ("rpcsec_gss", "port"): (1, 65535),
    ("rpcsec_gss", "connect_timeout"): (1, 3600),
    ("rpcsec_gss", "reply_timeout"): (1, 3600),
    ("names", "timeout"): (1, 3600),
    ("lustre", "reply_timeout"): (1, 3600),
}
CHOICES = {
    ("log", "level"): ("error", "warning", "info", "debug"),
    ("sptlrpc", "policy"): ("keyring", "pipe"),
}
PATHS = {
    ("log", "file"),
    ("krb5", "config"),
    ("krb5", "ccache_directory"),
    ("names", "program"),
    ("lustre", "parameters"),
}
KINDS = {int: "a whole number", str: "a string in quotes", bool: "true or false"}


def checked(document: Mapping[str, Any], where: str) -> Config:
    """The configuration in a TOML document; ``where`` names its file.  Raises ConfigError:
    unknown sections or keys, wrong values."""
    values: dict[str, Any] = {}
    for section, table in document.items():
        if section not in Config._fields:
            raise ConfigError(f"{where}: unknown section [{section}]; known: {', '.join(Config._fields)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: {section} is a section, not a value")
        if section == "hosts":
            for name, host in table.items():
                if not isinstance(host, str) or not host or not host.isprintable():
                    raise ConfigError(f"{where}: [hosts] {name!r}: a host name in quotes is needed")
            values[section] = table
            continue
        record = SECTIONS[section]
        for name, value in table.items():
            _check_value(section, record, name, value, where)
        values[section] = record(**table)
    return Config(**values)


def _check_value(section: str, record: type[Record], name: str, value: object, where: str) -> None:
    if name not in record._fields:
        known = ", ".join(record._fields)
        raise ConfigError(f"{where}: unknown key {name} in [{section}]; known: {known}")
    wanted = type(getattr(record, name))
    if type(value) is not wanted:
        raise ConfigError(f"{where}: [{section}] {name}: {KINDS[wanted]} is needed")
    if isinstance(value, str) and not value.isprintable():
        # A NUL would end the name early in C and be a ValueError in os.open.
        raise ConfigError(f"{where}: [{section}] {name}: {value!a} has characters that do not print")
    if wanted is int:
        assert isinstance(value, int)
        low, high = RANGES[section, name]
        if not low <= value <= high:
            raise ConfigError(f"{where}: [{section}] {name}: {low} to {high} is possible, not {value}")
    choices = CHOICES.get((section, name))
    if choices and value not in choices:
        raise ConfigError(f"{where}: [{section}] {name}: one of {', '.join(choices)}, not {value!a}")
    if (section, name) in PATHS and value and not str(value).startswith("/"):
        raise ConfigError(f"{where}: [{section}] {name}: an absolute path is needed")
