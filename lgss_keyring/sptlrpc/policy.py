"""Policies: where contexts come from.  One registry, one interface, two members."""

from __future__ import annotations

import errno
import importlib
import os
import pwd
from abc import ABC, abstractmethod

from lgss_keyring.formats import flavor as flavors
from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.formats.flavor import Flavor
from lgss_keyring.sptlrpc.context import Context
from lgss_keyring.sptlrpc.sec import SecurityObject, Target
from lgss_keyring.system.config_file import load as load_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

POLICIES = {"keyring": "KeyringPolicy", "pipe": "PipePolicy"}
ENVIRONMENT = "LGSS_POLICY"
NOGROUP = 65534


class Policy(ABC):
    """Safe between threads; a context manager that closes."""

    name: str

    def create_sec(self, target: Target, flavor: Flavor | str, *, root_flags: str = "r") -> SecurityObject:
        """The security object of a new import.  Contexts of uid 0 are asked for with
        ``root_flags`` (docs/protocol.md 2, field 4); empty: as an ordinary user's."""
        parsed = flavors.parse(flavor) if isinstance(flavor, str) else flavor
        return SecurityObject(self, target, parsed, root_flags)

    @abstractmethod
    def start(self, context: Context) -> None:
        """Ask for ``context``; returns when the request stands, raises LgssError when it
        cannot.  Later calls ``context.established`` or ``context.failed``, once."""

    @abstractmethod
    def check(self, context: Context) -> int:
        """0 while what stands behind ``context`` is good, else an errno."""

    @abstractmethod
    def retire(self, context: Context) -> None:
        """Get out of the way what stands behind ``context``: it is leaving the cache."""

    @abstractmethod
    def destroy(self, context: Context) -> None:
        """``context`` has lost its last reference."""

    @abstractmethod
    def display(self, context: Context) -> str:
        """What stands behind ``context``, in words."""

    def domain(self, sec: SecurityObject, uid: int) -> int:
        """The serial of the calling process's session keyring if ``sec``'s contexts of ``uid``
        are made with credentials that are there, which no other session may share; else 0."""
        return 0

    @property
    @abstractmethod
    def alive(self) -> int:
        """How many contexts exist, for tests of leaks."""

    def close(self) -> None:  # noqa: B027 (not every policy holds something)
        """Give up what is held for all security objects."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create(name: str | None = None, config_file: str | None = None, **options: object) -> Policy:
    """The policy called ``name``; else the one that the environment variable LGSS_POLICY
    names, else ``[sptlrpc] policy`` of ``config_file`` (default: lgss_keyring.toml(5)).

    ``options`` are the policy's own.  Raises LgssError for a name that is none, ConfigError
    for a configuration that cannot be used.
    """
    chosen = name or os.environ.get(ENVIRONMENT) or load_config(config_file).sptlrpc.policy
    if chosen not in POLICIES:
        raise LgssError(
            f"policy {chosen[:40]!a} is none of {', '.join(POLICIES)}", errno=errno.EINVAL, kind=Kind.POLICY
        )
    module = importlib.import_module(f"{__package__}.{chosen}")
    try:
        policy: Policy = getattr(module, POLICIES[chosen])(**options)
    except TypeError as error:
        # The name may come from the environment, the options from a program.
        raise LgssError(
            f"policy {chosen} does not have these options: {', '.join(options)}",
            errno=errno.EINVAL,
            kind=Kind.POLICY,
        ) from error
    return policy


def group_of(uid: int) -> int:
    """The gid to ask with for ``uid``: this process's for its own uid, else that of
    passwd(5), or nobody's.  Never root's own for somebody else."""
    if uid == os.geteuid():
        return os.getegid()
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return NOGROUP
