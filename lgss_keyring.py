#!/usr/bin/python3 -IS
"""lgss_keyring: what /sbin/request-key runs when a kernel wants a GSS context.

A process waits in request_key(2) until this one has exited, so it does what only
it can do and leaves: docs/architecture.md, "One upcall". The child it forks does
the rest, in lgss_keyring/monitor/upcall.py; what is not for us goes to refusal.py.

No script is cached by Python: this one is compiled at each upcall, 0.1 ms for every
15 statements. Hence its shortness, and what can live elsewhere does.
"""

import os
import sys

# Installed or staged, package and dependencies lie beside the file that the link
# in sbin points to. Behind the standard library, whose names nobody may take over.
sys.path.append(os.path.dirname(os.path.realpath(__file__)))

try:
    from lgss_keyring.front import keyctl
except Exception as error:
    # Without it no key can be answered: the kernel negates it (ENOKEY, 60 s).
    import syslog

    syslog.openlog("lgss_keyring", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_ERR, f"{type(error).__name__}: {error}; reinstall lgss_keyring")
    os._exit(1)

OPTIONS = {"-R": "realm", "--realm": "realm", "--config": "config", "--timeout": "timeout"}


def main(words: list[str]) -> int:
    options = {"timeout": "30"}
    while len(words) > 1 and words[0] in OPTIONS:
        options[OPTIONS[words[0]]] = words[1]
        words = words[2:]
    try:
        operation, serial, key_type, description, _, _, _, thread, process, session = words
        key, timeout = int(serial), int(options["timeout"])
        user = key_type == "user" and description.startswith("lgss:")
        if key < 1 or operation != "create" or not (user or key_type == "lgssc") or not 1 < timeout <= 3600:
            raise ValueError
        # Whoever holds a lock that we need, the requestor shall have his answer. Not after
        # 5 s: 200 upcalls at once on a slow machine needed longer, and 13 were lost.
        keyctl.alarm(timeout)
        keyctl.assume_authority(key)
        # With these links a credential that lives only there stays in the child's
        # reach when the authority is gone (docs/protocol.md 10). A requestor may have no such
        # keyring, or a revoked one.
        for ring in (session, thread, process):
            try:
                keyctl.link(int(ring), keyctl.KEY_SPEC_SESSION_KEYRING)
            except OSError:
                pass
        ready, go = os.pipe()
        if os.fork() == 0:
            os.close(go)
            # Not to preempt, when woken, the parent that is about to exit: measured, the
            # caller was back 0.9 ms earlier than with the default policy.
            schedule(os.SCHED_BATCH)
            told = os.read(ready, 1)
            schedule(os.SCHED_OTHER)
            serve(key, options, words, told)
            os._exit(0)
        if user:
            # One more: the kernel counts whole seconds, and our answer must come before.
            keyctl.set_timeout(key, timeout + 1)
            # The link makes the child the key's possessor, whoever it becomes.
            own = keyctl.get_keyring_id(keyctl.KEY_SPEC_SESSION_KEYRING)
            keyctl.instantiate(key, b"\0", own)
        else:
            # No payload, and NEVER our own keyring as destination: this type links
            # itself there, and naming it hangs us in the kernel (docs/protocol.md 7).
            keyctl.instantiate(key, None, 0)
        os.write(go, b"1")
        return 0
    except (ValueError, OSError) as error:
        from lgss_keyring.front import refusal

        return refusal.refuse(sys.argv[1:], error)


def schedule(policy: int) -> None:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:
        pass  # a container may forbid it; it only cost the caller less


def serve(key: int, options: dict[str, str], words: list[str], told: bytes) -> None:
    try:
        if not told:  # our parent was killed, or has refused
            from lgss_keyring.front import refusal

            if not refusal.instantiated(key, sys.argv[1:]):
                return
        import time  # built in, and no caller waits for this process

        started = time.monotonic()
        from lgss_keyring.monitor import upcall

        upcall.run(key, options, words, started)
    except BaseException as error:  # a damaged installation must not leave the caller waiting
        from lgss_keyring.front import refusal

        refusal.last_resort(key, error)


if __name__ == "__main__":
    # Not sys.exit: tearing the interpreter down would be paid for by the caller.
    os._exit(main(sys.argv[1:]))
