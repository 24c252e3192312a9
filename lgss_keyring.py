#!/usr/bin/python3 -IS
"""lgss_keyring: what /sbin/request-key runs when a kernel wants a GSS context.

The front's work is in lgss_keyring/front/main.py, which Python keeps compiled.  This
file, which it compiles at each upcall (0.1 ms for every 15 statements), only finds that.
"""

import os
import sys

# Installed or staged, package and dependencies lie beside the file that the link in sbin
# points to. They come last in the search, so that none of them replaces a module of the
# standard library.
sys.path.append(os.path.dirname(os.path.realpath(__file__)))

try:
    from lgss_keyring.front import main
except Exception as error:
    # Without it no key can be answered: the kernel negates it (ENOKEY, 60 s).
    import syslog

    syslog.openlog("lgss_keyring", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    line = f"{type(error).__name__}: {error}; reinstall lgss_keyring"
    syslog.syslog(syslog.LOG_ERR, line)
    if not os.path.exists("/dev/log"):
        with open("/dev/kmsg", "w") as kmsg:
            # Without the end of line the kernel shows it when the next one comes.
            kmsg.write(f"<{syslog.LOG_AUTHPRIV | syslog.LOG_ERR}>lgss_keyring: {line}\n")
    os._exit(1)


def serve(key, call, front):
    from lgss_keyring.monitor import turn

    turn.serve(key, call, front)


def log_refusal(key, call, reason, number):
    from lgss_keyring.monitor import upcall

    upcall.log_refusal(key, call, reason, number)


if __name__ == "__main__":
    # Not sys.exit: the caller would wait while the interpreter is torn down.
    os._exit(main.run(sys.argv[1:], serve, log_refusal))
