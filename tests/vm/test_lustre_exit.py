"""A context that Lustre asks for in a process that is exiting, with a file open.

Its namespaces are gone then, as docs/protocol.md 6 says. Without the context the close
fails, and the server keeps the open handle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from lustre import ALICE, established, secids
from moments import report_of
from server import LustreServer
from test_product import callout_to_server
from testmod import Report

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded", "nothing_left")]


# Runs as root, here or in a container; /proc is the host's in both, so what it calls self
# is this process's id on the host. It exits by SIGUSR1.
PROGRAM = """
import os, signal, sys
uid, has_parent, lines = int(sys.argv[1]), sys.argv[2] == "child", sys.argv[3:]
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
if has_parent and os.fork():
    os.wait()
    signal.pause()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
pid = os.readlink("/proc/self")
device = os.open("/dev/lgss_trigger", os.O_RDWR)
for line in lines:
    os.write(device, line.replace("PID", pid).encode())
print(pid, flush=True)
signal.sigwait({signal.SIGUSR1})
os._exit(0)
"""

TICKET_OF_BOB = """
mount -t tmpfs none /tmp
echo password | kinit -c /tmp/krb5cc_1000 bob >/dev/null
chmod 1777 /tmp
"""
CONTAINER = ("unshare", "--mount", "--pid", "--fork")
ROOTLESS = (
    *("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"),
    *("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"),
)


def request_of_a_process(when: str) -> tuple[str, str]:
    """The description and the line of a request for alice, with PID for the process's id."""
    secid = next(secids)
    callout = callout_to_server(ALICE, secid=secid, pid=123456789).replace(":123456789", ":PID")
    line = f"description={ALICE}@{secid:x} root=0 timeout_ms=90000 when={when} callout={callout}"
    return f"{ALICE}@{secid:x}", line


@contextlib.contextmanager
def process_with_a_file_open(
    *enter: str, parent: bool = True, asked_before: bool = False
) -> Iterator[Callable[[int], Report]]:
    """A process of alice's, with a file open.

    ``enter`` is the command that enters a container, where the ticket is bob's. With
    ``parent`` the process's parent is another one of alice's, which lives on; with
    ``asked_before`` it has had a context already. Yields what sends the process a signal
    that ends it, and gives the report of the request that its end makes.
    """
    moments = ["now", "close"] if asked_before else ["close"]
    names, lines = zip(*(request_of_a_process(moment) for moment in moments), strict=True)
    description = names[-1]
    # Alice is root in a user namespace of her own.
    uid, owner = ("0", "") if enter == ROOTLESS else (str(ALICE), "chown 1000:1000 /tmp/krb5cc_1000\n")
    script = (TICKET_OF_BOB + owner if enter else "") + 'exec python3 -c "$@"'
    command = [*enter, "sh", "-ec", script, "sh", PROGRAM, uid, "child" if parent else "alone", *lines]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            pid = int(process.stdout.readline())

            def end(number: int) -> Report:
                os.kill(pid, number)
                return report_of(description)

            yield end
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1], ids=["killed", "exits"])
def test_process_that_ends_with_a_file_open(server: LustreServer, ticket: None, number: int) -> None:
    with process_with_a_file_open() as end:
        context = established(server, end(number))
    assert context.initiator == "alice@LGSS.TEST" and context.request.uid == ALICE


def test_process_of_a_batch_system_that_has_had_a_context(server: LustreServer, ticket: None) -> None:
    """Its parent is root's. What an earlier worker saw of it tells where it was."""
    with process_with_a_file_open(parent=False, asked_before=True) as end:
        context = established(server, end(signal.SIGKILL))
    assert context.initiator == "alice@LGSS.TEST" and len(server.contexts) == 2


@pytest.mark.parametrize("enter", [CONTAINER, ROOTLESS], ids=["container", "rootless"])
def test_container_does_not_get_the_hosts_credentials(
    server: LustreServer, ticket: None, enter: tuple[str, ...]
) -> None:
    """Alice's ticket is outside, and no process of hers in the container stands for this one."""
    with process_with_a_file_open(*enter, parent=False) as end:
        report = end(signal.SIGKILL)
    assert report.error < 0 and not server.contexts
    assert not server.requests


@pytest.mark.parametrize(
    "enter", [CONTAINER[:2], CONTAINER, ROOTLESS], ids=["mount", "container", "rootless"]
)
def test_parent_in_the_container_has_its_credentials(
    server: LustreServer, ticket: None, enter: tuple[str, ...]
) -> None:
    with process_with_a_file_open(*enter) as end:
        context = established(server, end(signal.SIGKILL))
    assert context.initiator == "bob@LGSS.TEST" and context.request.uid == ALICE
