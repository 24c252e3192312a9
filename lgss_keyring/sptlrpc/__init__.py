"""The client side that asks for contexts, as a library over real keys (the 2008 design).

    policy = sptlrpc.create_policy()                       # keyring, or LGSS_POLICY
    sec = policy.create_sec(sptlrpc.Target(nid, 1, "lustre-MDT0000-mdc"), "krb5p")
    with sec.lookup_ctx() as context:
        context.refresh(30)
        token = context.seal(header, message)

Names are the design's (5.2) and Lustre's own.  What is for kernels there is done here with
what user space has; :mod:`.keyring` says how.
"""

from .buffers import Buffer, MessageBufferError
from .context import Context, ContextError, State
from .flavor import FLAVORS, Flavor, FlavorError
from .flavor import parse as parse_flavor
from .policy import POLICIES, Policy
from .policy import create as create_policy
from .sec import ALL, REVERSE_GRACE, SecurityObject, Target
from .session import Session
from .window import Window

__all__ = [
    "ALL",
    "FLAVORS",
    "POLICIES",
    "REVERSE_GRACE",
    "Buffer",
    "Context",
    "ContextError",
    "Flavor",
    "FlavorError",
    "MessageBufferError",
    "Policy",
    "SecurityObject",
    "Session",
    "State",
    "Target",
    "Window",
    "create_policy",
    "parse_flavor",
]
