"""What an acceptor can do wrong on request, by the option --fault's name."""

from __future__ import annotations

FAULTS = {
    "bad-verifier": "a bit of the window's MIC is wrong",
    "no-verifier": "an AUTH_NONE verifier where the MIC is due",
    "wrong-window": "the MIC is of another window than the one sent",
    "restart-once": "the first call is denied with RPCSEC_GSS_CREDPROBLEM",
    "restart-always": "every call is denied with RPCSEC_GSS_CREDPROBLEM",
    "drop-once": "the first call gets no answer",
    "gss-failure": "GSS_S_FAILURE in each rpc_gss_init_res",
    "continue-forever": "GSS_S_CONTINUE_NEEDED again and again",
    "bad-token": "a token that is none of the mechanism's",
    "no-handle": "an empty context handle",
    "huge-handle": "a context handle of 64 KiB",
    "delay": "each answer comes two seconds late",
    "trailing-bytes": "four bytes behind rpc_gss_init_res",
    "other-xid": "the reply's xid is none of ours",
    "one-byte-fragments": "legal: each byte in a fragment of its own",
}
