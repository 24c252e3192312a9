"""The error for a process whose credentials are not looked for."""

from __future__ import annotations

import errno

from lgss_keyring.formats.errors import Kind, RefusedError

HINT = "the process that needs the context must live until it has it, and be its user's"


def refusal(pid: int, why: str, number: int = errno.ESRCH, hint: str = HINT) -> RefusedError:
    """The error that says ``why`` credentials are not looked for where ``pid`` has its."""
    return RefusedError(
        f"cannot look for credentials where process {pid} has its: {why}",
        errno=number,
        kind=Kind.NAMESPACE,
        hint=hint,
    )
