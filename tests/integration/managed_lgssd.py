"""A small service manager with lgssd's sockets, as systemd holds them, and an lgssd whose workers
negotiate nothing; upcalls that come all the time, and what became of them."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import site as python_site
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lgss_keyring.formats.callout import format_callout
from lgss_keyring.front import lgssd_messages
from tests.support import runs
from tests.support.site import LOOPBACK_NID

from .waiting import within

CHECKOUT = Path(__file__).parents[2]
SCRIPT = """\
#!{python} -IS
import os, struct, sys, time
here = os.path.dirname(os.path.realpath(__file__))
sys.path += [here, *{packages!r}]
from lgss_keyring.daemon import limits
from lgss_keyring.formats import job_messages, worker_messages
from lgss_keyring.formats.outcome import Established
from lgss_keyring.worker import resident

def serve(connection, page, uid, *more):
    connection.send(job_messages.pack_group(uid + 1, True))
    while True:
        page.idle()
        data = connection.recv(20000)
        if not data:
            os._exit(0)
        number, message = job_messages.split(data)
        page.busy(number)
        if message[:1] == b"J":
            send = lambda text: connection.send(job_messages.with_number(number, text))
            send(worker_messages.CREDENTIAL_READY)
            target = job_messages.unpack_job(data).arguments[4].split(":")[8]
            time.sleep(float(target.removeprefix("sleep-")) if target.startswith("sleep-") else 0)
            handle = struct.pack("=Q", os.getpid())
            end = int(time.time()) + 3600
            send(worker_messages.pack_outcome(Established(32, handle, b"context", end, "alice@TEST")))

resident.run = serve
limits.LOOK_SECONDS = 0.1
{patch}
from lgss_keyring.daemon.__main__ import main
if __name__ == "__main__":
    main(prog_name="lgssd")
"""


class Installation:
    """A program `lgssd` that a link leads to, as tools/install.py makes it."""

    def __init__(self, patch: str = "") -> None:
        self.folder = runs.folder("managed")
        self.patch = patch
        self.program = self.folder / "lgssd"
        self.config = self.folder / "config.toml"
        self.log_file = self.folder / "log"
        self.krb5_conf = self.folder / "krb5.conf"
        self.krb5_conf.write_text("[libdefaults]\n")
        self.configure()
        self._versions = 0
        self.switch()
        self.program.symlink_to("current/lgssd.py")

    def configure(self, more: str = "") -> None:
        """Write the configuration."""
        new = self.folder / "config.new"
        new.write_text(
            f'{more}\n[log]\nfile = "{self.log_file}"\nlevel = "debug"\n'
            f'[krb5]\nconfig = "{self.krb5_conf}"\nccache_directory = "{self.folder}/machine"\n'
        )
        new.chmod(0o644)
        new.rename(self.config)

    def switch(self) -> Path:
        """Install another version, and switch the link; gives its folder."""
        self._versions += 1
        version = self.folder / f"version-{self._versions}"
        version.mkdir()
        (version / "lgss_keyring").symlink_to(CHECKOUT / "lgss_keyring")
        script = version / "lgssd.py"
        text = SCRIPT.format(python=sys.executable, packages=python_site.getsitepackages(), patch=self.patch)
        script.write_text(text)
        script.chmod(0o755)
        link = self.folder / "current.new"
        link.symlink_to(version.name)
        link.rename(self.folder / "current")
        return version

    def command(self, *more: str) -> list[str]:
        """What starts it."""
        return [str(self.program), "--config", str(self.config), *more]

    def log(self) -> str:
        """All that it has logged."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def close(self) -> None:
        """Take it away."""
        shutil.rmtree(self.folder)


class Manager:
    """Listens at lgssd's socket, starts lgssd when somebody connects and it does not run, and hears
    what it tells; a context manager."""

    def __init__(self, patch: str = "") -> None:
        self.installation = Installation(patch)
        folder = self.installation.folder
        self.path = str(folder / "upcall.sock")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen(1024)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(folder / "notify.sock"))
        self.heard: list[str] = []
        self.starts = 0
        self.statuses: list[int] = []
        """The exit statuses of the lgssds that have ended."""
        self.process: subprocess.Popen[bytes] | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_closing:
            if self.process is not None and self.process.poll() is not None:
                self.statuses.append(self.process.returncode)
                self.process = None
            waits_for = [self._notify] if self.process is not None else [self._notify, self._listener]
            ready, _, _ = select.select(waits_for, (), (), 0.01)
            if self._notify in ready:
                self.heard += self._notify.recv(4096).decode().splitlines()
            if self._listener in ready:
                self.starts += 1
                self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        listener = self._listener.fileno()
        environment = {
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": str(self.installation.folder / "notify.sock"),
            "WATCHDOG_USEC": "600000",
            "LISTEN_FDS": "1",
            "LISTEN_FDNAMES": "upcall",
        }
        # The pid is known in the new process only, and descriptor 3 may be taken in this one.
        become = 'LISTEN_PID=$$ exec "$@" 3<&"$LISTENER"'
        return subprocess.Popen(
            ["bash", "-c", become, "bash", *self.installation.command()],
            env={**environment, "LISTENER": str(listener)},
            pass_fds=[listener],
            stdout=subprocess.DEVNULL,
        )

    def is_running(self) -> bool:
        """Whether an lgssd runs."""
        return self.process is not None

    def pid(self) -> int:
        """That of the lgssd that runs, which has said that it is ready."""
        assert within(20, lambda: self.heard.count("READY=1") >= self.starts > 0 and self.process)
        assert self.process is not None
        return self.process.pid

    def ask(self, uid: int, target: str = "fake-MDT0000-mdc") -> Asked:
        """An upcall."""
        return Asked(self.path, str(self.installation.config), uid, target)

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing = True
        self._thread.join()
        self._listener.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._notify.close()
        self.installation.close()


class Asked:
    """An upcall's child, and what became of its request: ``"context"``, ``"back"`` (it does the work
    itself, as it was told to, or finds nobody) or ``"silence"`` (it does the work itself, late)."""

    def __init__(self, path: str, config: str, uid: int, target: str = "fake-MDT0000-mdc") -> None:
        callout = format_callout(uid=uid, gid=uid, lustre_service=1, target_nid=LOOPBACK_NID, obd_name=target)
        arguments = ["create", "4711", "user", "lgss:x", callout, str(uid), str(uid), "0", "0", "0"]
        message = lgssd_messages.pack_upcall(5, 30, "", config, arguments)
        assert message is not None
        self._started = time.monotonic()
        self._heard: list[bytes] = []
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(lgssd_messages.SILENCE)
        self._is_connected = True
        try:
            self._connection.connect(path)
            self._connection.send(message)
        except OSError:
            self._is_connected = False

    def result(self) -> str:
        """Wait for the end."""
        try:
            return self._result()
        finally:
            self.seconds = time.monotonic() - self._started
            self._connection.close()

    def _result(self) -> str:
        while self._is_connected:
            try:
                message = self._connection.recv(lgssd_messages.MESSAGE_LIMIT)
            except TimeoutError:
                return "silence"
            except OSError:
                return "back"
            if message in (b"", lgssd_messages.DO_IT_YOURSELF):
                return "back"
            if message[:1] == b"A":
                with contextlib.suppress(OSError):
                    self._connection.send(lgssd_messages.pack_done(0))
                assert lgssd_messages.Answer(message).errno == 0
                return "context"
        return "back"


class Load:
    """Upcalls of several users, all the time, until the end of the `with`."""

    def __init__(self, ask: Callable[[int], Asked], users: int = 8) -> None:
        self._ask = ask
        self._is_over = False
        self.results: list[tuple[str, float]] = []
        self._threads = [threading.Thread(target=self._run, args=(61900 + n,)) for n in range(users)]

    def _run(self, uid: int) -> None:
        while not self._is_over:
            asked = self._ask(uid)
            self.results.append((asked.result(), asked.seconds))
            time.sleep(0.005)

    def count(self, result: str) -> int:
        """How many have ended so."""
        return sum(each == result for each, _ in list(self.results))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()
