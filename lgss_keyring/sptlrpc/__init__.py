"""The side that asks for contexts, as a library over real keys (docs/sptlrpc.md).

    policy = sptlrpc.create_policy()                       # keyring, or LGSS_POLICY
    sec = policy.create_sec(sptlrpc.Target(nid, 1, "lustre-MDT0000-mdc"), "krb5p")
    with sec.lookup_ctx() as context:
        context.refresh(30)
        token = context.seal(header, message)

Names are those of the paper (docs/design-2008.md 5.2) and of Lustre.  What the paper describes
runs in the kernel; :mod:`.keyring` says how user space does the same.

Modules import only those before them in this list: limits, target, window, buffers,
session, context_fields, context, sec, policy, keyring and pipe, registry.
"""

from lgss_keyring.formats.flavor import FLAVORS, Flavor, FlavorError
from lgss_keyring.formats.flavor import parse as parse_flavor
from lgss_keyring.sptlrpc.buffers import Buffer, MessageBufferError
from lgss_keyring.sptlrpc.context import Context
from lgss_keyring.sptlrpc.context_fields import ALL, ContextError, State
from lgss_keyring.sptlrpc.limits import REVERSE_GRACE
from lgss_keyring.sptlrpc.policy import Policy
from lgss_keyring.sptlrpc.registry import POLICIES
from lgss_keyring.sptlrpc.registry import create as create_policy
from lgss_keyring.sptlrpc.sec import SecurityObject
from lgss_keyring.sptlrpc.session import Session
from lgss_keyring.sptlrpc.target import Target
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
