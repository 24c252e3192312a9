"""The client side that asks for contexts, as a library over real keys (docs/design-2008.md).

    policy = sptlrpc.create_policy()                       # keyring, or LGSS_POLICY
    sec = policy.create_sec(sptlrpc.Target(nid, 1, "lustre-MDT0000-mdc"), "krb5p")
    with sec.lookup_ctx() as context:
        context.refresh(30)
        token = context.seal(header, message)

Names are the design's (docs/design-2008.md 5.2) and Lustre's own.  What is for kernels
there is done here with what user space has; :mod:`.keyring` says how.
"""

from lgss_keyring.formats.flavor import FLAVORS, Flavor, FlavorError
from lgss_keyring.formats.flavor import parse as parse_flavor
from lgss_keyring.sptlrpc.buffers import Buffer, MessageBufferError
from lgss_keyring.sptlrpc.context import Context, ContextError, State
from lgss_keyring.sptlrpc.policy import POLICIES, Policy
from lgss_keyring.sptlrpc.policy import create as create_policy
from lgss_keyring.sptlrpc.sec import ALL, REVERSE_GRACE, SecurityObject, Target
from lgss_keyring.sptlrpc.session import Session
from lgss_keyring.sptlrpc.window import Window

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
