"""A throw-away MIT realm with a KDC on loopback.

k5test was weighed: it knows the same binaries, but writes its files for the one uid
that runs it (here an ordinary user must read krb5.conf and own a cache), and its
KDC cannot be stopped, paused and started again on its port.  What is left to write
is two configuration files and some command lines.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import runs

SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin")
PACKAGES = {
    "krb5kdc": "krb5-kdc",
    "kdb5_util": "krb5-kdc",
    "kadmin.local": "krb5-admin-server",
    "kinit": "krb5-user",
    "setpriv": "util-linux",
}


class RealmError(Exception):
    """A tool of MIT Kerberos is missing or has failed; the text says which and how."""


@dataclass(frozen=True)
class Population:
    """The keytabs of a populated realm, mode 0600, root's."""

    server_keytab: Path
    machine_keytab: Path
    user_keytab: Path


class Realm:
    """A realm with a running KDC; a context manager that takes all of it away.

    ``enctypes``: names for every key, ticket and session of the realm; default:
    the library's.  ``krb5_conf`` is readable for everybody; a uid's default cache is
    ``FILE:<directory>/ccaches/krb5cc_<uid>``.
    """

    def __init__(self, name: str = "LGSS.TEST", enctypes: Sequence[str] | None = None) -> None:
        self.name = name
        self.directory = runs.folder("realm")
        self._kdc: subprocess.Popen[bytes] | None = None
        self._principals: set[str] = set()
        try:
            self.ccaches = self.directory / "ccaches"
            self.ccaches.mkdir()
            self.ccaches.chmod(0o1777)
            self.port = _free_port()
            self.krb5_conf = self.directory / "krb5.conf"
            self._write_configuration(enctypes)
            self.env = {
                "KRB5_CONFIG": str(self.krb5_conf),
                "KRB5_KDC_PROFILE": str(self.directory / "kdc.conf"),
            }
            self._run("kdb5_util", "-r", name, "-P", "throw-away", "create", "-s")
            self.start_kdc()
        except BaseException:
            self.close()
            raise

    def _write_configuration(self, enctypes: Sequence[str] | None) -> None:
        d = self.directory
        types = " ".join(enctypes or ())
        restricted = f"  permitted_enctypes = {types}\n" if enctypes else ""
        # No DNS: neither for KDCs nor for names. Tests must not depend on a resolver.
        self.krb5_conf.write_text(
            f"[libdefaults]\n"
            f"  default_realm = {self.name}\n"
            f"  dns_lookup_kdc = false\n"
            f"  dns_lookup_realm = false\n"
            f"  dns_canonicalize_hostname = false\n"
            f"  rdns = false\n"
            # Else libkrb5 appends the machine's own domain to a name like localhost.
            f'  qualify_shortname = ""\n'
            f"  default_ccache_name = FILE:{self.ccaches}/krb5cc_%{{uid}}\n"
            f"{restricted}"
            f"[realms]\n"
            f"  {self.name} = {{\n"
            f"    kdc = 127.0.0.1:{self.port}\n"
            f"  }}\n"
        )
        supported = (
            f"    supported_enctypes = {' '.join(f'{name}:normal' for name in enctypes)}\n"
            f"    master_key_type = {enctypes[0]}\n"
            if enctypes
            else ""
        )
        (d / "kdc.conf").write_text(
            f"[realms]\n"
            f"  {self.name} = {{\n"
            f"    database_name = {d}/principal\n"
            f"    key_stash_file = {d}/stash\n"
            f"    acl_file = {d}/acl\n"
            f"    kdc_listen = 127.0.0.1:{self.port}\n"
            f"    kdc_tcp_listen = 127.0.0.1:{self.port}\n"
            f"{supported}"
            f"  }}\n"
            f"[logging]\n"
            f"  kdc = FILE:{d}/kdc.log\n"
        )

    def _run(self, tool: str, *arguments: str, env: dict[str, str] | None = None) -> str:
        command = [_tool(tool), *arguments]
        done = subprocess.run(
            command,
            env={**os.environ, **self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise RealmError(f"{' '.join(command)}: {done.stdout.strip()}")
        return done.stdout

    def administer(self, *words: str) -> str:
        """One command of kadmin(1); its output."""
        return self._run("kadmin.local", "-r", self.name, *words)

    def add_principal(self, principal: str) -> None:
        """Create a principal with a random key, unless that was done before."""
        if principal in self._principals:
            return
        self._principals.add(principal)
        self.administer("addprinc", "-randkey", principal)

    def extract_keytab(self, path: Path, *principals: str) -> Path:
        """Append the principals' current keys to the keytab ``path``, mode 0600."""
        self.administer("ktadd", "-norandkey", "-k", str(path), *principals)
        path.chmod(0o600)
        return path

    def ccache_of(self, uid: int) -> Path:
        """The file of the uid's default credential cache."""
        return self.ccaches / f"krb5cc_{uid}"

    def kinit(self, principal: str, uid: int, gid: int, lifetime: int | None = None) -> None:
        """Get a fresh TGT into the default cache of ``uid``; ``lifetime`` in seconds.

        The principal's keys come from the user keytab of :meth:`populate`.
        """
        target = self.ccache_of(uid)
        new = target.with_name(f"{target.name}.new")
        life = ["-l", f"{lifetime}s"] if lifetime else []
        keytab = str(self.directory / "user.keytab")
        self._run("kinit", "-k", "-t", keytab, *life, "-c", f"FILE:{new}", principal)
        os.chown(new, uid, gid)
        new.replace(target)

    def populate(self, host: str) -> Population:
        """What a site has: services and their keytab, the machine's and a user's."""
        d = self.directory
        services = [f"{service}/{host}" for service in ("lustre_mgs", "lustre_mds", "lustre_oss")]
        machine = f"lustre_root/{host}"
        for principal in (*services, machine, "alice"):
            self.add_principal(principal)
        return Population(
            self.extract_keytab(d / "server.keytab", *services),
            self.extract_keytab(d / "machine.keytab", machine),
            self.extract_keytab(d / "user.keytab", "alice"),
        )

    def start_kdc(self) -> None:
        """Start the KDC, on the same port each time, and wait until it answers."""
        # setpriv: the KDC is to die with us, whatever way we die.
        command = [_tool("setpriv"), "--pdeathsig", "KILL", _tool("krb5kdc"), "-n", "-r", self.name]
        self._kdc = subprocess.Popen(
            command,
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # A KDC is a machine of its own: not to starve beside the 200 clients of a test,
        # until libkrb5 gives it up.
        os.setpriority(os.PRIO_PROCESS, self._kdc.pid, -10 if os.geteuid() == 0 else 0)
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self._kdc.poll() is not None or time.monotonic() > end:
                    log = self.directory / "kdc.log"
                    said = log.read_text()[-500:] if log.exists() else "nothing"
                    raise RealmError(f"the KDC does not start; its log says: {said}") from None
                time.sleep(0.01)

    def stop_kdc(self) -> None:
        """End the KDC: its port refuses connections then."""
        if self._kdc is not None:
            self._kdc.kill()
            self._kdc.wait()
            self._kdc = None

    def pause_kdc(self) -> None:
        """Let the KDC be there, but silent (SIGSTOP)."""
        assert self._kdc is not None
        self._kdc.send_signal(signal.SIGSTOP)

    def resume_kdc(self) -> None:
        """Let a paused KDC go on."""
        assert self._kdc is not None
        self._kdc.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the KDC and remove all files."""
        self.stop_kdc()
        runs.remove(self.directory)

    def __enter__(self) -> Realm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tool(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *SBIN)))
    if path is None:
        raise RealmError(f"{name} is missing; install the package {PACKAGES[name]} (`make setup` does)")
    return path


def _free_port() -> int:
    """A port of loopback that is free for TCP and UDP."""
    for _ in range(50):
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RealmError("no port of 127.0.0.1 is free for TCP and UDP")
