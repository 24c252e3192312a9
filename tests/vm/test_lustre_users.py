"""Users' caches, and users in containers, on a Lustre client."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lustre import ALICE, ask, established, failed, mount, rejected, systemctl
from server import LustreServer
from test_product import (
    as_alice,
    soon,
)

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("testmod_loaded", "nothing_left")]


@pytest.fixture
def default_cache() -> Iterator[Callable[[str], None]]:
    """Change default_ccache_name of /etc/krb5.conf."""
    conf = Path("/etc/krb5.conf")
    before = conf.read_text()

    def change(name: str) -> None:
        conf.write_text(
            before.replace("[libdefaults]\n", f"[libdefaults]\n    default_ccache_name = {name}\n", 1)
        )

    yield change
    conf.write_text(before)


@pytest.mark.parametrize(
    "name", ["KCM:", "KEYRING:persistent:%{uid}", "DIR:/home/alice/caches", "FILE:/home/alice/cc"]
)
def test_default_cache_of_a_user(
    server: LustreServer, default_cache: Callable[[str], None], name: str
) -> None:
    default_cache(name)
    if name.startswith("DIR"):
        as_alice("mkdir", "-p", "/home/alice/caches")
    as_alice("kinit", "alice", stdin="password\n")
    listed = subprocess.check_output(["klist"], text=True, user=1000, group=1000, extra_groups=[])
    assert name.partition(":")[0] in listed
    try:
        assert established(server, ask(ALICE)).initiator == "alice@LGSS.TEST"
    finally:
        as_alice("kdestroy", "-A")
    failed(ask(ALICE), errno.ENOKEY, "no-ticket", 7 << 16)


@contextlib.contextmanager
def contained(script: str, uid: int = 0, *unshare: str) -> Iterator[int]:
    """The pid of a process in namespaces of its own, after `script` has run there."""
    command = [
        "unshare",
        *unshare,
        "sh",
        "-ec",
        f"{script}\necho ready\nexec setpriv --reuid={uid} --regid={uid} --clear-groups sleep 600",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            wanted = f"Uid:\t{uid}\t"
            assert soon(lambda: wanted in Path(f"/proc/{process.pid}/status").read_text())
            yield process.pid
        finally:
            process.kill()


CONTAINER_TICKET = """
mount -t tmpfs none /tmp && chmod 1777 /tmp
echo password | kinit -c /tmp/krb5cc_1000 alice >/dev/null && chown 1000:1000 /tmp/krb5cc_1000
"""


def test_user_in_another_mount_namespace(server: LustreServer) -> None:
    """The C program refuses this user for a minute, and the same user outside, too."""
    with contained(CONTAINER_TICKET, ALICE, "--mount") as pid:
        assert established(server, ask(ALICE, pid=pid)).initiator == "alice@LGSS.TEST"
        # Outside there is no ticket, then there is one: each has their own.
        failed(ask(ALICE), errno.ENOKEY, "no-ticket", 7 << 16)
        as_alice("kinit", "alice", stdin="password\n")
        established(server, ask(ALICE))
        as_alice("kdestroy")


def test_user_in_another_network_namespace_too(server: LustreServer) -> None:
    """A KDC that only this namespace has, on its own loopback."""
    script = (
        """
ip link set lo up
krb5kdc -P /tmp/kdc-inside.pid
"""
        + CONTAINER_TICKET
    )
    systemctl("stop", "krb5-kdc")
    try:
        with contained(script, ALICE, "--mount", "--net") as pid:
            context = established(server, ask(ALICE, pid=pid))
            assert context.initiator == "alice@LGSS.TEST"
    finally:
        subprocess.run(["pkill", "-F", "/tmp/kdc-inside.pid"])
        Path("/tmp/kdc-inside.pid").unlink(missing_ok=True)
        systemctl("start", "krb5-kdc")


def test_machine_credential_of_a_container(server: LustreServer, tmp_path: Path) -> None:
    """Its keytab alone: never the host's, nor a cache of the host's."""
    keytab = tmp_path / "keytab"
    for command in (
        "addprinc -randkey host/client.lgss.test",
        f"ktadd -norandkey -k {keytab} host/client.lgss.test",
    ):
        subprocess.run(["kadmin.local", "-r", "LGSS.TEST", *command.split()], capture_output=True)
    established(server, ask(0, flags="r"))  # the host's own ticket is there
    with contained(f"mount --bind {keytab} /etc/krb5.keytab", 0, "--mount") as pid:
        context = established(server, ask(0, flags="r", pid=pid))
        assert context.initiator == "host/client.lgss.test@LGSS.TEST"
    with contained("mount --bind /dev/null /etc/krb5.keytab", 0, "--mount") as pid:
        rejected(mount(pid=pid), errno.ENOKEY, "keytab-unreadable")
