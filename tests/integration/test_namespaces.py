"""Credentials of containers: callout field 10, with real namespaces (docs/security.md,
"Whom we believe")."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgss_keyring.formats.errors import RefusedError
from lgss_keyring.system import processes
from lgss_keyring.worker import namespaces
from tests.support import peers
from tests.support.requestor import Requestor
from tests.support.site import STRANGER_UID, USER_UID, Site, Upcalls, machine_callout, user_callout

from .answers import established, proven
from .credentials import contents, initiator, kinit
from .failures import failed
from .waiting import pace, root_processes, upcall_processes, within, workers_in

pytestmark = pytest.mark.vm


@contextlib.contextmanager
def process(
    *unshare: str, script: str = "", uid: int = USER_UID, then_as: int | None = None
) -> Iterator[int]:
    """The pid of a process, started as ``uid`` with namespaces of its own by unshare(1), that
    has run ``script`` there and then become ``then_as``."""
    become = f"setpriv --reuid={then_as} --regid={then_as} --clear-groups" if then_as is not None else ""
    command = ["unshare", *unshare, "sh", "-ec", f"{script}\necho ready\nexec {become} sleep 600"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, user=uid, group=uid, extra_groups=[]
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            stat = Path(f"/proc/{started.pid}/cmdline")
            assert within(3, lambda: stat.read_bytes().startswith(b"sleep"))
            yield started.pid
        finally:
            started.kill()


@pytest.fixture
def hidden(site: Site) -> Iterator[str]:
    """A script for root that gives its mount namespace a default cache of the user's, while
    outside there is none."""
    site.realm.ccache_of(USER_UID).unlink(missing_ok=True)
    ticket = site.directory / "ticket-for-inside"
    kinit(site, site.population.user_keytab, "alice", ticket)
    os.chown(ticket, USER_UID, USER_UID)
    where = site.realm.ccaches
    yield (
        f"mount -t tmpfs none {where} && chmod 1777 {where}\n"
        f"cp -p {ticket} {site.realm.ccache_of(USER_UID)}\n"
    )
    ticket.unlink()


@pytest.fixture
def contained(hidden: str) -> Iterator[int]:
    """A process of the user's in a mount namespace with a ticket."""
    with process("--mount", script=hidden, uid=0, then_as=USER_UID) as pid:
        yield pid


def test_user_in_another_mount_namespace(site: Site, upcalls: Upcalls, contained: int) -> None:
    """And outside nothing is changed: the C program's negative key blocked that user too."""
    with Requestor(USER_UID) as user:
        answer = user.ask(upcalls.name(), user_callout(pid=contained))
        assert initiator(upcalls, answer) == "alice"
        proven(site, answer)
        failed(user.ask(upcalls.name(), user_callout()), upcalls, errno.ENOKEY, "no-ticket")
        # Known by now: the front answers by the note of it. In there it is not.
        assert user.ask(upcalls.name(), user_callout(pid=os.getpid())).error == errno.ENOKEY
        established(user.ask(upcalls.name(), user_callout(pid=contained)))
        site.kinit()
        established(user.ask(upcalls.name(), user_callout()))
        site.realm.ccache_of(USER_UID).unlink()


def test_root_asks_for_a_user_in_a_container(upcalls: Upcalls, root: Requestor, contained: int) -> None:
    established(root.ask(upcalls.name(), user_callout(pid=contained)))


def test_rootless_container(site: Site, upcalls: Upcalls, hidden: str) -> None:
    """A user namespace of the user's own, in which that user is root, with its own mounts."""
    with (
        process("--user", "--map-root-user", "--mount", script=hidden, uid=USER_UID) as pid,
        Requestor(USER_UID) as user,
    ):
        established(user.ask(upcalls.name(), user_callout(pid=pid)))


def test_network_namespace(site: Site, upcalls: Upcalls) -> None:
    """The KDC is asked from inside: there is none on that loopback. The acceptor is reached
    from outside, where the kernel would be."""
    site.kinit()
    with process("--net", script="ip link set lo up", uid=0, then_as=USER_UID) as pid:
        with Requestor(USER_UID) as user:
            answer = user.ask(upcalls.name(), user_callout(pid=pid))
            failed(answer, upcalls, errno.EHOSTUNREACH, "kdc-unreachable", limit=10)
            # With the service's ticket in the cache no KDC is needed.
            established(user.ask(upcalls.name(), user_callout()))
            established(user.ask(upcalls.name(), user_callout(pid=pid)))


def test_root_enters_nothing(upcalls: Upcalls, root: Requestor, hidden: str) -> None:
    """Not even for itself: a krb5.conf there can name plug-ins, and root drops nothing."""
    with process("--mount", script=hidden, uid=0) as pid:
        answer = root.ask(upcalls.name(), user_callout(0, pid=pid))
        failed(answer, upcalls, errno.EACCES, "namespace", "in our namespaces only")


def test_thread_stands_for_its_process(upcalls: Upcalls, contained: int) -> None:
    """The kernel's pid is a thread's. Here one that is not its process's first."""
    script = (
        "import threading, time\n"
        "def work(): print(threading.get_native_id(), flush=True); time.sleep(60)\n"
        "threading.Thread(target=work).start()\n"
    )
    command = ["nsenter", f"--mount=/proc/{contained}/ns/mnt", "setpriv", f"--reuid={USER_UID}"]
    command += [f"--regid={USER_UID}", "--clear-groups", "/usr/bin/python3", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as threaded:
        try:
            assert threaded.stdout is not None
            thread = int(threaded.stdout.readline())
            assert thread != threaded.pid
            with Requestor(USER_UID) as user:
                established(user.ask(upcalls.name(), user_callout(pid=thread)))
        finally:
            threaded.kill()


def test_pid_of_another_user(upcalls: Upcalls, user: Requestor, hidden: str) -> None:
    for stranger in (STRANGER_UID, 0):
        with process("--mount", uid=0, then_as=stranger) as pid:
            answer = user.ask(upcalls.name(), user_callout(pid=pid))
            failed(answer, upcalls, errno.EACCES, "namespace", f"it is of uid {stranger}, not {USER_UID}")


def test_pid_of_another_user_in_our_namespaces(upcalls: Upcalls, user: Requestor) -> None:
    with process(uid=0, then_as=STRANGER_UID) as pid:
        answer = user.ask(upcalls.name(), user_callout(pid=pid))
        failed(answer, upcalls, errno.EACCES, "namespace", f"it is of uid {STRANGER_UID}")
    # A service of root's that works for the user: there is nothing to enter.
    established(user.ask(upcalls.name(), user_callout(pid=os.getpid())))


def test_pid_that_is_gone(upcalls: Upcalls, user: Requestor) -> None:
    with process() as pid:
        pass
    failed(
        user.ask(upcalls.name(), user_callout(pid=pid)), upcalls, errno.ESRCH, "namespace", "no such process"
    )


def test_pid_that_was_reused() -> None:
    """A process younger than the request is not who made it."""
    with process() as pid:
        found = namespaces.RequestorNamespaces(processes.Task(pid))
        started = processes.start_time(Path(f"/proc/{pid}/stat").read_bytes())
        found.check_owner(USER_UID, started)
        with pytest.raises(RefusedError, match="reused") as caught:
            found.check_owner(USER_UID, started - 1)
        assert caught.value.errno == errno.ESRCH
        with pytest.raises(RefusedError, match=f"uid {USER_UID}, not 5"):
            found.check_owner(5, started)
    for use in (found.check_alive, found.check_initial, lambda: found.check_owner(USER_UID, started)):
        with pytest.raises(RefusedError, match="has ended"):
            use()


@pytest.mark.parametrize("name", ["a) S 1 2 3", ") R (", "sleep"])
def test_start_time_in_spite_of_the_name(name: str) -> None:
    line = f"77 ({name}) S " + " ".join(str(number) for number in range(4, 53))
    assert processes.start_time(line.encode()) == 22


def test_foreign_krb5_conf_is_read_by_nobody_but_the_user(site: Site, upcalls: Upcalls, hidden: str) -> None:
    """It can name plug-ins to load. Here it is a FIFO: a process that reads it waits in it."""
    fifo = site.directory / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o644)
    script = f"{hidden}mount --bind {fifo} {site.realm.krb5_conf}\n"
    try:
        with process("--mount", script=script, uid=0, then_as=USER_UID) as pid, Requestor(USER_UID) as user:
            inside = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            assert user.ask(upcalls.name(), user_callout(pid=pid), wait=0).error == 0

            def entered() -> list[str]:
                return [Path(f"/proc/{each}/status").read_text() for each in workers_in(site, inside)]

            assert within(3, lambda: len(entered()) == 1)
            time.sleep(pace(0.3))  # it waits, and for as long as this it has been the user
            (status,) = entered()
            assert f"Uid:\t{USER_UID}\t{USER_UID}\t{USER_UID}\t{USER_UID}\n" in status
            assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
            for each in upcall_processes(site):
                os.kill(each, 9)
    finally:
        fifo.unlink()


def test_worker_in_a_container_has_nothing_of_the_host(site: Site, upcalls: Upcalls, contained: int) -> None:
    """A folder of our /proc leads by .. to our root; a process of ours can be traced."""
    with peers.Silent() as peer:
        settings = {"rpcsec_gss": {"port": peer.port, "reply_timeout": 30}}
        with site.upcalls(settings) as upcalls, Requestor(USER_UID) as user:
            assert user.ask(upcalls.name(), user_callout(pid=contained), wait=0).error == 0
            inside = os.stat(f"/proc/{contained}/ns/mnt").st_ino
            assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
            (worker,) = workers_in(site, inside)
            # What it has open for a moment only, its cache say, is its own.
            assert within(3, lambda: held_by(worker) == {"socket:", "/dev/null"}), held_by(worker)
            (pids,) = re.findall(r"^NSpid:\s+(.*)$", Path(f"/proc/{worker}/status").read_text(), re.MULTILINE)
            assert pids.split() == [str(worker), "1"]
            os.kill(root_processes(site)[1], 9)
            assert within(1, lambda: not upcall_processes(site))


def held_by(pid: int) -> set[str]:
    """What it has open, sockets without their numbers."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(re.sub(r"(?<=^socket:).*", "", os.readlink(each)))
        except FileNotFoundError:
            pass  # closed meanwhile
    return found


def test_what_a_worker_in_a_container_started_ends_with_it(
    site: Site, upcalls: Upcalls, contained: int
) -> None:
    """tests/unit shows what a pid namespace does; here that there is one for each of them,
    and that lives no longer than the negotiation."""
    with Requestor(USER_UID) as user:
        for _ in range(2):
            user.start(upcalls.name(), user_callout(pid=contained))
            deadline = time.monotonic() + pace(3)
            while time.monotonic() < deadline and not (found := pid_namespaces(site)):
                time.sleep(0.0005)
            assert len(found) == 1
            established(user.result())
            assert within(3, lambda: not pid_namespaces(site))


def pid_namespaces(site: Site) -> set[int]:
    """Those that the upcalls' processes live in, but for ours: other runs have containers, too."""
    found = set()
    for pid in upcall_processes(site):
        with contextlib.suppress(OSError):
            found.add(os.stat(f"/proc/{pid}/ns/pid").st_ino)
    return found - {os.stat("/proc/self/ns/pid").st_ino}


def test_containers_can_be_refused(site: Site, upcalls: Upcalls, contained: int, root: Requestor) -> None:
    with site.upcalls({"upcall": {"containers": False}}) as strict, Requestor(USER_UID) as user:
        for who, callout in ((user, user_callout(pid=contained)), (root, machine_callout(pid=contained))):
            failed(who.ask(strict.name(), callout), strict, errno.EACCES, "namespace", "containers is off")
        site.kinit()
        established(user.ask(strict.name(), user_callout(pid=user.pid)))
        site.realm.ccache_of(USER_UID).unlink()


def test_names_as_they_are_are_the_containers_business(site: Site, hidden: str) -> None:
    """Our file about them is not there, where the container has a file system of its own."""
    package = (site.stage.program.resolve().parent / "lgss_keyring").resolve()
    script = f"{hidden}mount -t tmpfs none {package}\n"
    with (
        process("--mount", script=script, uid=0, then_as=USER_UID) as pid,
        site.upcalls({"names": {"canonicalize": False}}) as upcalls,
        Requestor(USER_UID) as user,
    ):
        established(user.ask(upcalls.name(), user_callout(pid=pid)))
        assert any("that mount namespace decides" in e["message"] for e in upcalls.log())


# The machine's credential.


def settings(keytab: Path) -> dict[str, dict[str, str]]:
    # Any principal: what is tested is where the keytab comes from.
    return {"krb5": {"keytab": str(keytab)}}


def test_machine_credential_of_a_container(
    site: Site, upcalls: Upcalls, root: Requestor, root_cache: Path
) -> None:
    """Its keytab alone; no cache of the host's, though there are two, and nothing is put there."""
    established(root.ask(upcalls.name(), machine_callout()))
    keytab = site.population.machine_keytab
    kinit(site, keytab, "lustre_root/localhost", root_cache)
    before = contents(site.directory / "machine")
    assert len(before) > 1
    other = site.directory / "container.keytab"
    site.realm.add_principal("lustre_root")
    site.realm.extract_keytab(other, "lustre_root")
    with process("--mount", script=f"mount --bind {other} {keytab}", uid=0) as pid:
        answer = root.ask(upcalls.name(), machine_callout(pid=pid))
        assert initiator(upcalls, answer) == "lustre_root"
        assert contents(site.directory / "machine") == before
        assert initiator(upcalls, root.ask(upcalls.name(), machine_callout())) == "lustre_root/localhost"
    other.unlink()


def test_container_without_a_keytab_gets_nothing_of_the_hosts(
    site: Site, upcalls: Upcalls, root: Requestor
) -> None:
    established(root.ask(upcalls.name(), machine_callout()))
    folder = site.directory / "covered"
    folder.mkdir()
    keytab = folder / "keytab"
    shutil.copyfile(site.population.machine_keytab, keytab)
    with site.upcalls(settings(keytab)) as others:
        with process("--mount", script=f"mount -t tmpfs none {folder}", uid=0) as pid:
            answer = root.ask(others.name(), machine_callout(pid=pid))
            failed(answer, others, errno.ENOKEY, "keytab-missing", str(keytab))
        # A link that leads out of the container leads to what is there inside.
        script = (
            f"mount -t tmpfs none {folder}\n"
            f"ln -s /../../../../../../..{site.directory}/elsewhere/keytab {keytab}\n"
            f"mkdir {site.directory}/elsewhere && mount -t tmpfs none {site.directory}/elsewhere\n"
        )
        with process("--mount", script=script, uid=0) as pid:
            shutil.copyfile(site.population.machine_keytab, site.directory / "elsewhere" / "keytab")
            answer = root.ask(others.name(), machine_callout(pid=pid))
            failed(answer, others, errno.ENOKEY, "keytab-missing")
        shutil.rmtree(site.directory / "elsewhere")
        # Nor does one through /proc, whose links lead anywhere.
        with process(
            "--mount",
            script=f"mount -t tmpfs none {folder}\nln -s /proc/1/root{folder}/keytab {keytab}",
            uid=0,
        ) as pid:
            answer = root.ask(others.name(), machine_callout(pid=pid))
            failed(answer, others, errno.ENOKEY, "keytab-unreadable")
    shutil.rmtree(folder)


def test_keytab_of_a_container_that_is_a_device(site: Site, root: Requestor) -> None:
    """To open one may do something: a watchdog, a tape."""
    folder = site.directory / "covered"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)

    def opened() -> bool:
        try:
            return bool(os.read(watch, 4096))
        except BlockingIOError:
            return False

    script = f"mount -t tmpfs -o dev none {folder}\nmknod {folder}/keytab c 1 3\n"
    try:
        with (
            site.upcalls(settings(folder / "keytab")) as upcalls,
            process("--mount", script=script, uid=0) as pid,
        ):
            node = f"/proc/{pid}/root{folder}/keytab"
            assert libc.inotify_add_watch(watch, node.encode(), 0x20) > 0  # IN_OPEN
            answer = root.ask(upcalls.name(), machine_callout(pid=pid))
            failed(answer, upcalls, errno.ENOKEY, "keytab-unreadable")
            assert not opened()
            os.close(os.open(node, os.O_RDONLY))
            assert opened()
    finally:
        os.close(watch)
        folder.rmdir()


def test_no_machine_credential_for_another_user_namespace(upcalls: Upcalls, root: Requestor) -> None:
    with process("--user", "--map-root-user", "--mount", uid=0) as pid:
        answer = root.ask(upcalls.name(), machine_callout(pid=pid))
        failed(answer, upcalls, errno.EACCES, "namespace", "another user namespace")


def test_machine_credential_for_a_process_of_ours(upcalls: Upcalls, root: Requestor) -> None:
    established(root.ask(upcalls.name(), machine_callout(pid=os.getpid())))
    failed(root.ask(upcalls.name(), machine_callout(pid=2**22)), upcalls, errno.ESRCH, "namespace")
