"""The interface of policies, which make contexts; :mod:`.registry` lists those that there are."""

from __future__ import annotations

import inspect
import os
import pwd
from abc import ABC, abstractmethod

from lgss_keyring.formats import flavor as flavors
from lgss_keyring.formats.flavor import Flavor
from lgss_keyring.sptlrpc.sec import ContextSource, SecurityObject

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from lgss_keyring.sptlrpc.target import Target

NOBODY_GID = 65534


class Policy(ContextSource, ABC):
    """What every policy has.  Safe between threads; a context manager that closes.

    A subclass gives its ``name`` and the methods of :class:`.sec.ContextSource`.  Its
    constructor's arguments are the policy's options; each must have a default.
    """

    def create_sec(self, target: Target, flavor: Flavor | str, *, root_flags: str = "r") -> SecurityObject:
        """The security object of a new import; raises FlavorError for an unknown ``flavor``.

        Contexts of uid 0 are asked for with ``root_flags`` (docs/protocol.md 2, field 4):
        ``r``, ``m`` and ``o`` ask for the machine's credential, the empty string for root's
        own, as an ordinary user's.
        """
        parsed = flavors.parse(flavor) if isinstance(flavor, str) else flavor
        return SecurityObject(self, target, parsed, root_flags)

    @classmethod
    def options(cls) -> Mapping[str, object]:
        """The names of its options with their defaults."""
        return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}

    def domain(self, sec: SecurityObject, uid: int) -> int:
        """0: no session has credentials of its own, unless a policy says otherwise."""
        return 0

    @property
    @abstractmethod
    def alive(self) -> int:
        """How many contexts exist, for tests of leaks."""

    def close(self) -> None:
        """Give up what is held for all security objects."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def group_of(uid: int) -> int:
    """The gid to ask with for ``uid``: this process's for its own uid, else that of
    passwd(5), or nobody's.  It is never root's own for another user."""
    if uid == os.geteuid():
        return os.getegid()
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return NOBODY_GID
