"""Reading the one configuration file, lgss_keyring.toml(5)."""

from __future__ import annotations

import errno
import os
import stat

from lgss_keyring.formats.config import DEFAULT_PATH, Config, checked
from lgss_keyring.formats.errors import ConfigError
from lgss_keyring.system.limits import CONFIG_BYTES


def load(path: str | None = None) -> Config:
    """The configuration in the file ``path``.

    None means the file :data:`DEFAULT_PATH`, which need not exist; without it all settings have
    their defaults.  Raises ConfigError: the file is missing, cannot be read, is too big, can be
    written by others, is no TOML, or has unknown keys or wrong values.
    """
    text = _read(path or DEFAULT_PATH, required=path is not None)
    if text is None:
        return Config()
    # Only here: the import takes 14 ms, and most machines have no such file.
    import tomllib

    source = path or DEFAULT_PATH
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # TOMLDecodeError is a ValueError; numbers of 4300 digits are a plain one, and
        # nested brackets end in a RecursionError.
        raise ConfigError(f"{source}: {error}") from error
    return checked(document, source)


def _read(path: str, required: bool) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENOENT and not required:
            return None
        raise ConfigError(f"cannot open {path}: {error.strerror}") from error
    try:
        # The open file is checked, not the path: another file could take the path's place.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > CONFIG_BYTES:
            raise ConfigError(f"{path} is no regular file of at most {CONFIG_BYTES} bytes")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise ConfigError(
                f"{path} decides what root does, but others may write it",
                hint=f"chown root {path}; chmod go-w {path}",
            )
        data = b""
        while chunk := os.read(descriptor, CONFIG_BYTES):
            data += chunk
    finally:
        os.close(descriptor)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error
