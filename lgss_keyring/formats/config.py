"""The configuration's shape: each setting with its type, its default and what it may be.

A machine with a keytab needs no file: every setting has a default.  lgss_keyring.toml(5) explains
the settings, and :mod:`lgss_keyring.system.config_file` reads the file.
"""

from __future__ import annotations

from lgss_keyring.formats.errors import ConfigError
from lgss_keyring.formats.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar

DEFAULT_PATH = "/etc/lgss_keyring.toml"


class PathRule(Record):
    """In :attr:`Section.allowed`: the setting must be an absolute path.

    ``may_be_empty``: it may also be empty.  ``prefixes``: one of these may stand before the path.
    ``is_cache``: it may also be the name of a credential cache of any type (``TYPE:``).
    """

    may_be_empty: bool = False
    prefixes: tuple[str, ...] = ()
    is_cache: bool = False

    def what_is_needed(self, value: str) -> str:
        """What ``value`` should be instead; empty if it may be the setting's value."""
        if not value:
            return "" if self.may_be_empty else "it is empty, and an absolute path is needed"
        for prefix in self.prefixes:
            value = value.removeprefix(prefix)
        if self.is_cache and value.partition(":")[1] and not value.startswith((".", "FILE:")):
            return ""
        return "" if value.startswith("/") else "an absolute path is needed"


if TYPE_CHECKING:
    Allowed = range | tuple[str, ...] | PathRule
    """The numbers, the words or the kind of text that a setting may be."""

A_PATH = PathRule()
A_PATH_OR_NOTHING = PathRule(may_be_empty=True)
A_KEYTAB = PathRule(prefixes=("FILE:", "WRFILE:"))
A_CACHE = PathRule(may_be_empty=True, prefixes=("FILE:", "WRFILE:"), is_cache=True)

SECONDS = range(1, 3601)
U32 = range(2**32)


class Section(Record):
    """A section of the file; its fields are the settings.

    ``allowed`` says which values they may have.  It has an entry for each number; texts and truth
    values without one may have any value.
    """

    if TYPE_CHECKING:
        allowed: ClassVar[Mapping[str, Allowed]]
    else:
        allowed = {}


class Log(Section):
    """[log]: ``file``, to which each line is appended (empty: none), and the least urgent
    ``level`` that is written."""

    file: str = ""
    level: str = "info"
    allowed = {"file": A_PATH_OR_NOTHING, "level": ("error", "warning", "info", "debug")}


class Upcall(Section):
    """[upcall]: the ``timeout`` of a negotiation in seconds; ``machine_wait``: seconds that a
    request for the machine's credential may take before its key is instantiated; ``word_ms``:
    milliseconds that a user's request may take before, where lgssd runs; ``containers``: whether
    processes in other mount or network namespaces are served."""

    timeout: int = 30
    machine_wait: int = 10
    word_ms: int = 50
    containers: bool = True
    allowed = {"timeout": SECONDS, "machine_wait": range(1, 61), "word_ms": range(1001)}


class Krb5(Section):
    """[krb5].  Empty means for ``config`` the file that libkrb5 finds, for ``ccache`` root's
    default cache, and for ``principal`` what docs/protocol.md 4 says.  ``ccache_directory`` is
    where our own files are; it is made if the folder above it is there."""

    config: str = ""
    keytab: str = "/etc/krb5.keytab"
    ccache: str = ""
    principal: str = ""
    ccache_directory: str = "/run/lgss"
    allowed = {
        "config": A_PATH_OR_NOTHING,
        "keytab": A_KEYTAB,
        "ccache": A_CACHE,
        "ccache_directory": A_PATH,
    }


class ContainerKrb5(Krb5):
    """[krb5] for the machine's credential of a container: ``keytab`` is the container's,
    already open, and no cache of this host may be used."""


class Names(Section):
    """[names]: how a NID becomes the host name of a service principal.

    ``reverse_dns``: the resolver is asked where [hosts] does not know; ``canonicalize``: libkrb5
    may change the name as krb5.conf says; ``timeout`` in seconds for one name; ``program`` for
    networks of type ptl4 (docs/protocol.md 3).
    """

    reverse_dns: bool = True
    canonicalize: bool = True
    timeout: int = 10
    program: str = "/etc/lustre/nid2hostname"
    allowed = {"timeout": SECONDS, "program": A_PATH}


class Lustre(Section):
    """[lustre]: ``parameters``, the directory of Lustre's parameters (empty: where
    docs/protocol.md 6 says), and ``reply_timeout`` in seconds for one write to init_channel."""

    parameters: str = ""
    reply_timeout: int = 100
    allowed = {"parameters": A_PATH_OR_NOTHING, "reply_timeout": SECONDS}


class RpcsecGss(Section):
    """[rpcsec_gss]: how acceptors are reached for keys of type ``user``; timeouts in seconds."""

    program: int = 0x20004C47
    version: int = 1
    port: int = 20988
    connect_timeout: int = 5
    reply_timeout: int = 10
    allowed = {
        "program": U32,
        "version": U32,
        "port": range(1, 65536),
        "connect_timeout": SECONDS,
        "reply_timeout": SECONDS,
    }


class Sptlrpc(Section):
    """[sptlrpc]: the ``policy`` of programs that do not choose one themselves."""

    policy: str = "keyring"
    allowed = {"policy": ("keyring", "pipe")}


class Metrics(Section):
    """[metrics]: ``textfile``, the file for node_exporter that lgssd writes each minute (empty: none)."""

    textfile: str = ""
    allowed = {"textfile": A_PATH_OR_NOTHING}


class Config(Record):
    """All sections; ``hosts`` maps NIDs, addresses, targets and this host to host names, and
    ``path`` is where the file is, or would be."""

    log: Log = Log()
    upcall: Upcall = Upcall()
    krb5: Krb5 = Krb5()
    rpcsec_gss: RpcsecGss = RpcsecGss()
    names: Names = Names()
    lustre: Lustre = Lustre()
    sptlrpc: Sptlrpc = Sptlrpc()
    metrics: Metrics = Metrics()
    hosts: Mapping[str, str] = {}
    path: str = DEFAULT_PATH

    def hint_with_path(self, reason: str, hint: str) -> str:
        """``hint`` with the path of the file added, if ``reason`` or ``hint`` names a section and
        neither names the file, because few people remember where ``[hosts]`` is."""
        text = f"{reason} {hint}"
        if self.path in text or not any(f"[{name}]" in text for name in (*SECTIONS, "hosts")):
            return hint
        return f"{hint} (in {self.path})" if hint else f"see {self.path}"


SECTIONS: dict[str, type[Log | Upcall | Krb5 | RpcsecGss | Names | Lustre | Sptlrpc | Metrics]] = {
    "log": Log,
    "upcall": Upcall,
    "krb5": Krb5,
    "rpcsec_gss": RpcsecGss,
    "names": Names,
    "lustre": Lustre,
    "sptlrpc": Sptlrpc,
    "metrics": Metrics,
}
_TYPES = {int: "a whole number", str: "a string in quotes", bool: "true or false"}


def checked(document: Mapping[str, Any], path: str) -> Config:
    """The configuration in a TOML document that was read from ``path``.

    Raises ConfigError: unknown sections or keys, wrong values.
    """
    values: dict[str, Any] = {}
    for name, table in document.items():
        if name not in SECTIONS and name != "hosts":
            known = ", ".join((*SECTIONS, "hosts"))
            raise ConfigError(f"{path}: unknown section [{name}]; known: {known}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} is a section, not a value")
        if name == "hosts":
            # Only here: most machines have no such section.
            from lgss_keyring.formats import hosts_table

            values[name] = hosts_table.checked(table, path)
            continue
        section = SECTIONS[name]
        for key, value in table.items():
            if key not in section._fields:
                known = ", ".join(section._fields)
                raise ConfigError(f"{path}: unknown key {key} in [{name}]; known: {known}")
            if needed := _complaint(section, key, value):
                raise ConfigError(f"{path}: [{name}] {key}: {needed}")
        values[name] = section(**table)
    return Config(**values, path=path)


def _complaint(section: type[Section], key: str, value: object) -> str:
    """What is wrong with ``value`` as the value of ``key``; empty if nothing is."""
    # Not isinstance: bool is a subclass of int, so that true would count as a number.
    wanted = type(getattr(section, key))
    if type(value) is not wanted:
        return f"{_TYPES[wanted]} is needed"
    allowed = section.allowed.get(key)
    if isinstance(value, str) and not value.isprintable():
        # In C a NUL would end the text early, and os.open raises ValueError for it.
        return f"{value!a} has characters that do not print"
    if isinstance(allowed, range) and value not in allowed:
        return f"{allowed[0]} to {allowed[-1]} is possible, not {value}"
    if isinstance(allowed, tuple) and value not in allowed:
        return f"one of {', '.join(allowed)}, not {value!a}"
    return allowed.what_is_needed(str(value)) if isinstance(allowed, PathRule) else ""
