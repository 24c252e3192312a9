"""lgssd's configuration, and what else it was started with that may change on disk."""

from __future__ import annotations

import os

from lgss_keyring.formats.config import DEFAULT_PATH, Config
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.nid import PTL4, Nid
from lgss_keyring.front.lgssd import WORD_FILE
from lgss_keyring.monitor import init_channel
from lgss_keyring.monitor.upcall import DEBUG_LEVELS
from lgss_keyring.system import config_file, fingerprint
from lgss_keyring.worker import krb5_conf, names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest


USERS = ("/etc/passwd", "/etc/nsswitch.conf")
"""A worker has its user's primary group from these.  What another name service knows anew is seen
by the user's next worker."""


class Settings:
    """The configuration in the file ``path`` (None: the default one), read anew when it changes."""

    def __init__(self, path: str | None) -> None:
        """Raises ConfigError."""
        self.path = path
        self._announced_at = ""
        self.current: Config = config_file.load(path)
        self._is_good = True
        self._seen = self._fingerprint()
        self._krb5_files = krb5_conf.files(self.current.krb5)
        self._users = _users_fingerprint()

    def _fingerprint(self) -> str:
        return fingerprint.of(self.path or DEFAULT_PATH)

    def look(self) -> bool:
        """Read again what has changed; returns whether anything that workers have loaded has.  While the
        configuration is wrong no upcall is served: each upcall's own process says what is wrong."""
        is_changed = self._fingerprint() != self._seen
        if is_changed:
            self.reload()
        if krb5_conf.have_changed(self._krb5_files):
            self._krb5_files = krb5_conf.files(self.current.krb5)
            is_changed = True
        users = _users_fingerprint()
        if users != self._users:
            self._users = users
            is_changed = True
        return is_changed

    def reload(self) -> str:
        """Read the file now; returns what is wrong with it, empty if nothing is."""
        self._seen = self._fingerprint()
        try:
            self.current = config_file.load(self.path)
        except LgssError as error:
            self._is_good = False
            return error.reason
        self._is_good = True
        self._krb5_files = krb5_conf.files(self.current.krb5)
        self._write_word_ms()
        return ""

    def announce(self, socket: str) -> None:
        """Leave ``[upcall] word_ms`` in the file beside ``socket``, for fronts, which read no
        configuration: now, and when it changes."""
        self._announced_at = f"{socket}{WORD_FILE}"
        self._write_word_ms()

    def _write_word_ms(self) -> None:
        if not self._announced_at:
            return
        new = f"{self._announced_at}.new"
        try:
            with open(new, "w", encoding="ascii") as file:
                file.write(str(self.current.upcall.word_ms))
            os.rename(new, self._announced_at)
        except OSError:
            pass  # fronts take the default then

    def serves(self, path: str | None) -> bool:
        """Whether requests with the option --config ``path`` (None: without it) have this configuration."""
        return self._is_good and (path or DEFAULT_PATH) == (self.path or DEFAULT_PATH)

    def needs_program(self, request: UpcallRequest) -> bool:
        """Whether a program of root's must be asked for a host name of ``request``."""
        own = request.is_machine and Nid.from_int(request.self_nid).network_type == PTL4
        return own or names.needs_program(request, self.current)

    def level(self, key_type: str) -> str:
        """The level of the log for a request of ``key_type``; on a Lustre client its parameter
        debug_level decides, which people set to see the next upcall."""
        if key_type == "lgssc":
            parameter = init_channel.debug_level(self.current)
            if parameter is not None:
                return DEBUG_LEVELS[parameter]
        return self.current.log.level


def _users_fingerprint() -> list[str]:
    return [fingerprint.of(path) for path in USERS]
