"""The policies that there are: one function and one line in :data:`POLICIES` for each.

docs/sptlrpc.md lists their options.
"""

from __future__ import annotations

import errno
import os

from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.sptlrpc.policy import Policy
from lgss_keyring.system.config_file import load as load_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENVIRONMENT = "LGSS_POLICY"


# Each imports its policy only when that is chosen. mypy checks an assignment, unlike a
# return, also for methods that the class lacks.


def _keyring() -> type[Policy]:
    from lgss_keyring.sptlrpc.keyring import KeyringPolicy

    policy: type[Policy] = KeyringPolicy
    return policy


def _pipe() -> type[Policy]:
    from lgss_keyring.sptlrpc.pipe import PipePolicy

    policy: type[Policy] = PipePolicy
    return policy


POLICIES: Mapping[str, Callable[[], type[Policy]]] = {"keyring": _keyring, "pipe": _pipe}
"""For each name, what gives the policy's class."""


def create(name: str | None = None, config_file: str | None = None, **options: object) -> Policy:
    """The policy called ``name``; else the one that the environment variable LGSS_POLICY
    names, else ``[sptlrpc] policy`` of ``config_file`` (default: lgss_keyring.toml(5)).

    ``options`` are the policy's own.  Raises LgssError for a name or an option that there is
    not, ConfigError for a configuration that cannot be used.
    """
    chosen = name or os.environ.get(ENVIRONMENT) or load_config(config_file).sptlrpc.policy
    if chosen not in POLICIES:
        raise LgssError(
            f"policy {chosen[:40]!a} is none of {', '.join(POLICIES)}", errno=errno.EINVAL, kind=Kind.POLICY
        )
    policy = POLICIES[chosen]()
    unknown = [option for option in options if option not in policy.options()]
    if unknown:
        # The name may come from the environment, the options from a program.
        raise LgssError(
            f"policy {chosen} does not have these options: {', '.join(unknown)}",
            errno=errno.EINVAL,
            kind=Kind.POLICY,
            hint=f"it has: {', '.join(policy.options())}",
        )
    return policy(**options)
