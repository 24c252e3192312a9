"""Reading the one configuration file, lgss_keyring.toml(5)."""

from __future__ import annotations

import errno
import os
import stat

from lgss_keyring.formats.config import Config, checked
from lgss_keyring.formats.errors import ConfigError

DEFAULT_PATH = "/etc/lgss_keyring.toml"
SIZE_LIMIT = 1 << 16
"""Bytes of the file."""


def load(path: str | None = None) -> Config:
    """The configuration in ``path``; None: that of :data:`DEFAULT_PATH`, if it is there.

    Raises ConfigError: unreadable, not safe from others, no TOML, unknown keys, wrong values.
    """
    text = _read(path or DEFAULT_PATH, required=path is not None)
    if text is None:
        return Config()
    import tomllib  # 14 ms, for those only who have a file

    where = path or DEFAULT_PATH
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # TOMLDecodeError is a ValueError; numbers of 4300 digits are a plain one, and
        # nested brackets end in a RecursionError.
        raise ConfigError(f"{where}: {error}") from error
    return checked(document, where)


def _read(path: str, required: bool) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENOENT and not required:
            return None
        raise ConfigError(f"cannot open {path}: {error.strerror}") from error
    try:
        # The open file, not the path: what is checked is what is read.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > SIZE_LIMIT:
            raise ConfigError(f"{path} is no regular file of at most {SIZE_LIMIT} bytes")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise ConfigError(
                f"{path} decides what root does, but others may write it",
                hint=f"chown root {path}; chmod go-w {path}",
            )
        data = b""
        while chunk := os.read(descriptor, SIZE_LIMIT):
            data += chunk
    finally:
        os.close(descriptor)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error
