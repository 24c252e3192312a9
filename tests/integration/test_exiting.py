"""Processes that are exiting, whose namespaces the kernel has taken away already."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lgss_keyring.formats.callout import UpcallRequest, parse_request
from lgss_keyring.formats.errors import RefusedError
from lgss_keyring.system import processes
from lgss_keyring.worker import namespaces
from tests.support.cgroup import Cgroup
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, Upcalls, user_callout
from tests.support.slow_close import SlowClose

from .answers import established
from .failures import failed
from .waiting import within

pytestmark = pytest.mark.vm


@pytest.fixture
def slow() -> Iterator[SlowClose]:
    with SlowClose() as slow:
        yield slow


@contextlib.contextmanager
def exiting_child(
    slow: SlowClose,
    child: str = "pass",
    parent: str = "pass",
    command: tuple[str, ...] = (),
    uid: int = USER_UID,
    orphan: bool = False,
    before: Callable[[int], object] = lambda pid: None,
    bytes_: bytes = b"x",
) -> Iterator[int]:
    """The pid of a process that is exiting, while its parent, the user's, lives.

    ``child`` and ``parent`` are Python that these run before, ``command`` a program through
    which the parent runs; an ``orphan`` has root for its parent.
    ``before`` is called before it exits, which it does after ``bytes_``.
    """
    holder = slow.holder()
    script = (
        "import ctypes, os, sys, time\n"
        "libc = ctypes.CDLL(None)\n"
        "socket = int(sys.argv[1])\n"
        f"if {orphan} or os.fork() == 0:\n"
        f"    {child}\n"
        "    print(os.readlink('/proc/self'), flush=True)\n"
        "    os.read(0, 1)\n"
        "    os._exit(0)\n"
        "os.close(socket)\n"
        f"{parent}\n"
        "time.sleep(600)\n"
    )
    arguments = [*command, "/usr/bin/python3", "-c", script, str(holder.fileno())]
    with subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=uid,
        group=uid,
        extra_groups=[],
        pass_fds=[holder.fileno()],
        start_new_session=True,
    ) as started:
        try:
            assert started.stdin and started.stdout
            pid = int(started.stdout.readline())
            before(pid)
            holder.close()
            slow.arm()
            started.stdin.write(bytes_)
            started.stdin.flush()
            assert within(5, lambda: not os.path.exists(f"/proc/{pid}/ns/mnt"))
            task = processes.Task(pid)
            assert task.is_exiting() and not task.has_ended()
            yield pid
        finally:
            slow.go_on()
            os.killpg(started.pid, signal.SIGKILL)


def request(pid: int, uid: int = USER_UID) -> UpcallRequest:
    words = ["create", "5", "user", "lgss:x", user_callout(uid, pid=pid), str(uid), str(uid), "0", "0", "0"]
    return parse_request(words)


def find(pid: int, folder: str = "") -> namespaces.RequestorNamespaces | None:
    return namespaces.find(request(pid), processes.own_start_time() + 10**6, folder=folder)


def refused(pid: int, words: str, number: int = errno.ESRCH) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        find(pid)
    assert (caught.value.kind, caught.value.errno) == ("namespace", number)


def test_process_that_exits_with_a_file_open_gets_its_context(
    site: Site, upcalls: Upcalls, slow: SlowClose
) -> None:
    site.kinit()
    # The requestor first: it must not inherit the file that is armed later.
    with Requestor(USER_UID) as user, exiting_child(slow) as pid:
        established(user.ask(upcalls.name(), user_callout(pid=pid)))
    with Requestor(USER_UID) as user:
        failed(user.ask(upcalls.name(), user_callout(pid=pid)), upcalls, errno.ESRCH, "namespace")


def test_exiting_process_is_served_as_its_living_parent(slow: SlowClose) -> None:
    with exiting_child(slow) as pid:
        assert find(pid) is None  # nothing to enter
        with pytest.raises(RefusedError, match="reused"):
            namespaces.find(request(pid), processes.Task(pid).start_time() - 1)


def test_in_the_namespaces_of_its_parent_if_these_are_others(slow: SlowClose) -> None:
    command = (
        "unshare",
        "--mount",
        "setpriv",
        f"--reuid={USER_UID}",
        f"--regid={USER_UID}",
        "--clear-groups",
    )
    with exiting_child(slow, command=command, uid=0) as pid:
        task = processes.Task(pid)
        assert namespaces.foreign(pid)
        found = namespaces._of_exiting(task, request(pid), task.start_time(), "")
        assert found and found.different == {"mnt"} and found.pid == int(task.status()[b"PPid"])


@pytest.mark.parametrize(
    ("child", "words"),
    [
        ("libc.prctl(38, 1, 0, 0, 0)", "NoNewPrivs differs"),
        ("assert libc.unshare(0x10000000) == 0", "CapBnd differs|its user namespace differs"),
    ],
    ids=["no_new_privs", "user namespace"],
)
def test_child_that_was_confined_is_not_taken_for_its_parent(slow: SlowClose, child: str, words: str) -> None:
    with exiting_child(slow, child=child) as pid:
        refused(pid, words)


DROP = f"[os.setresgid(*[{USER_UID}] * 3), os.setresuid(*[{USER_UID}] * 3)]"


def test_child_in_another_cgroup_is_not_taken_for_its_parent(slow: SlowClose) -> None:
    with Cgroup() as cgroup:
        join = f"open('{cgroup.path}/cgroup.procs', 'w').write('0')"
        with exiting_child(slow, uid=0, child=f"{join}; {DROP}", parent=DROP) as pid:
            refused(pid, "its cgroup differs")


def test_child_in_another_pid_namespace_is_not_taken_for_its_parent(slow: SlowClose) -> None:
    """A container's first process: its parent may be in our mount namespace."""
    with exiting_child(slow, command=("unshare", "--pid"), uid=0, child=DROP, parent=DROP) as pid:
        refused(pid, "its pid namespace differs")


def test_all_of_a_pid_namespace_with_our_mounts_is_refused(slow: SlowClose) -> None:
    child = f"{DROP}; os.fork() and [os.close(socket), time.sleep(600)]"
    with exiting_child(slow, command=("unshare", "--pid"), uid=0, child=child, parent=DROP) as pid:
        refused(pid, "in a pid or user namespace of its own", errno.EACCES)


def test_all_of_a_user_namespace_with_our_mounts_is_refused(slow: SlowClose) -> None:
    with exiting_child(slow, command=("unshare", "--user")) as pid:
        refused(pid, "in a pid or user namespace of its own", errno.EACCES)


def test_child_of_root_is_refused(slow: SlowClose) -> None:
    """Root starts containers, too, so that its namespaces say nothing of its child's."""
    with exiting_child(slow, orphan=True) as pid:
        refused(pid, "Uid differs")


def test_process_that_was_seen_in_our_namespaces_is_known_while_it_exits(
    slow: SlowClose, tmp_path: Path
) -> None:
    """Whatever its parent is."""
    folder = str(tmp_path / "lgss")
    with exiting_child(slow, orphan=True, before=lambda pid: find(pid, folder)) as pid:
        assert find(pid, folder) is None
        refused(pid, "Uid differs")
        os.chmod(folder, 0o777)  # anybody could have written there
        with pytest.raises(RefusedError):
            find(pid, folder)


def test_process_that_was_confined_since_it_was_seen_is_not_known(slow: SlowClose, tmp_path: Path) -> None:
    """As a set-uid program does that starts a container in the same process."""
    folder = str(tmp_path / "lgss")
    confine = "os.read(0, 1); libc.prctl(38, 1, 0, 0, 0)"
    child = f"print(os.getpid(), flush=True); {confine}"
    with exiting_child(
        slow, orphan=True, child=child, before=lambda pid: find(pid, folder), bytes_=b"xx"
    ) as pid:
        with pytest.raises(RefusedError, match="nor a parent to go by"):
            find(pid, folder)


def test_process_seen_in_another_namespace_is_not_remembered(slow: SlowClose, tmp_path: Path) -> None:
    folder = str(tmp_path / "lgss")
    command = ("unshare", "--mount", "setpriv", f"--reuid={USER_UID}", f"--regid={USER_UID}")

    def before(pid: int) -> None:
        with pytest.raises(RefusedError, match="changed its mount namespace"):
            find(pid, folder)

    with exiting_child(slow, command=(*command, "--clear-groups"), uid=0, orphan=True, before=before) as pid:
        with pytest.raises(RefusedError, match="Uid differs"):
            find(pid, folder)


def test_zombie_is_no_process_any_more() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert within(3, lambda: b"Z" in processes.state(Path(f"/proc/{pid}/stat").read_bytes()))
    refused(pid, "it has ended")
    os.waitpid(pid, 0)


def test_thread_of_a_process_whose_first_thread_has_ended(slow: SlowClose) -> None:
    """/proc/PID/ns of such a process is empty; that of the thread is not."""
    script = (
        "import ctypes, threading, time\n"
        "def work(): print(threading.get_native_id(), flush=True); time.sleep(600)\n"
        "threading.Thread(target=work).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", script], stdout=subprocess.PIPE, user=USER_UID, group=USER_UID
    ) as threaded:
        try:
            assert threaded.stdout is not None
            thread = int(threaded.stdout.readline())
            assert within(3, lambda: not os.path.exists(f"/proc/{threaded.pid}/ns/mnt"))
            assert find(thread) is None
            refused(threaded.pid, "it has ended")
        finally:
            threaded.kill()
