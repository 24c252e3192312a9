"""Processes that lgssd forks for work of its own that its loop must not wait for."""

from __future__ import annotations

from lgss_keyring.front import oom
from lgss_keyring.worker import confinement, identity, monitor_connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.formats.config import Config


def begin(lgssd: int, settings: Config, in_child: Callable[[], None], kept: int = -1) -> None:
    """Call this first in such a process.  The process then ends with ``lgssd`` (a pid), shows its memory to
    nobody, and has a worker's bounds and a worker's environment for libkrb5.  ``in_child()`` closes what
    lgssd has open; of the other descriptors, only the first three and ``kept`` stay.  Raises OSError."""
    identity.stay_undumpable()
    identity.die_with(lgssd)
    identity.forget_signals()
    in_child()
    monitor_connection.close_descriptors_but(kept)
    oom.set_score(oom.ORDINARY)
    confinement.bound()
    identity.replace_environment(settings.krb5.config, settings.names.canonicalize)
