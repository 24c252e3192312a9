"""Host names and service names (docs/protocol.md 3 and 4), by tables, resolvers and programs."""

from __future__ import annotations

import _thread
import errno
import os
import signal
import socket

from lgss_keyring.formats.errors import Kind, ResolutionError
from lgss_keyring.formats.nid import LO, PTL4, Nid, ip_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.formats.config import Config, Names

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
SERVICES = ("lustre_mgs", "lustre_mds", "lustre_oss")


def host_name(nid: Nid, config: Config) -> str:
    """The host name of ``nid``: from ``[hosts]``, by text NID or address; else from the
    program for a ptl4 network, or by reverse DNS unless ``[names] reverse_dns`` forbids it.

    A name is required, as service principals have names.  Raises ResolutionError, after
    ``[names] timeout`` at the latest.
    """
    table = config.hosts
    if str(nid) in table:
        return table[str(nid)]
    if nid.network_type == LO and nid.address == 0:
        return own_host_name(config)
    hint = f'add it to [hosts]: "{nid}" = "NAME"'
    if nid.network_type == PTL4:
        return _by_program(nid, config.names, hint)
    address = ip_address(nid)
    if address in table:
        return table[address]
    if not config.names.reverse_dns:
        raise ResolutionError(
            f"NID {nid} is not in [hosts], and [names] reverse_dns is off", kind=Kind.NO_HOST_NAME, hint=hint
        )
    try:
        return _bounded(
            lambda: socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0], f"NID {nid}", config.names
        )
    except OSError as error:
        raise ResolutionError(
            f"address {address} of NID {nid} has no host name: {error.strerror or error}",
            kind=Kind.NO_HOST_NAME,
            hint=f"add it to reverse DNS or /etc/hosts; or {hint}",
        ) from error


def own_name(self_nid: int, config: Config) -> str:
    """This node's host name (docs/protocol.md 4): that of its own NID when that is not 0, else
    :func:`own_host_name`.  Raises ResolutionError."""
    return host_name(Nid.from_int(self_nid), config) if self_nid else own_host_name(config)


def own_host_name(config: Config) -> str:
    """The canonical host name of this node, by uname(2)'s node name (docs/protocol.md 4); that name
    as it is without ``[names] canonicalize``.

    Raises ResolutionError, after ``[names] timeout`` at the latest.
    """
    node = os.uname().nodename
    if node in config.hosts:
        return config.hosts[node]
    if not config.names.canonicalize:
        return node
    try:
        return (
            _bounded(
                # Bytes: for text Python would load the tables of IDNA, which a user in a
                # namespace of his own may not have.
                lambda: socket.getaddrinfo(os.fsencode(node), None, flags=socket.AI_CANONNAME)[0][3],
                node,
                config.names,
            )
            or node
        )
    except OSError as error:
        raise ResolutionError(
            f"this node's own name {node} does not resolve: {error.strerror}",
            kind=Kind.NO_HOST_NAME,
            hint="put it into /etc/hosts, with its full name first",
        ) from error


def _bounded(call: Callable[[], str], what: str, names: Names) -> str:
    """The result of ``call``, which asks the C library and cannot be told to give up: so it
    runs in a thread, and that is left behind when time is up.  Raises what it raises
    (OSError), or ResolutionError."""
    result: list[str | BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            result.append(error)
        finally:
            done.release()

    _thread.start_new_thread(run, ())
    if not done.acquire(timeout=names.timeout):
        raise ResolutionError(
            f"no name service told the name of {what} within {names.timeout} s",
            errno=errno.ETIMEDOUT,
            kind=Kind.NAME_TIMEOUT,
            hint="check the name servers in /etc/resolv.conf; [hosts] makes them needless, [names] timeout "
            "sets this limit",
        )
    (value,) = result
    if isinstance(value, BaseException):
        raise value
    return value


def preload(nid: Nid) -> None:
    """Import what only networks of that type need."""
    if nid.network_type == PTL4:
        import subprocess  # noqa: F401


def _by_program(nid: Nid, names: Names, hint: str) -> str:
    """The external program of docs/protocol.md 3, by an argument vector: no shell.

    (CVE-2020-14342 was a shell in such a place.)  It runs as whom we are.  As root we run
    nothing that somebody else could have written.
    """
    import subprocess

    program = names.program
    failed = f"{program} did not tell the host name of NID {nid}"
    try:
        status = os.stat(program)
        if os.geteuid() == 0 and (status.st_uid != 0 or status.st_mode & 0o022):
            raise ResolutionError(
                f"{failed}: others than root may write it", hint=f"chown root {program}; chmod go-w {program}"
            )
        words = [program, "PTL4LND", f"{nid.network_number:#x}", f"{nid.address:#x}"]
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ),
            # Unbuffered, so that no lock of a reader who is left behind is waited for; a
            # session, so that all of it can be ended.
            bufsize=0,
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout is not None
                stream = process.stdout
                text = _bounded(lambda: stream.readline(1000).decode("ascii"), f"NID {nid}", names)
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
    except (OSError, ValueError) as error:
        raise ResolutionError(f"{failed}: {error}", kind=Kind.NO_HOST_NAME, hint=hint) from error
    name = text.strip()
    if name.startswith("@"):
        raise ResolutionError(f"{failed}: it says {name[1:200]!a}", kind=Kind.NO_HOST_NAME, hint=hint)
    if not name or not set(name) <= NAME_CHARACTERS:
        raise ResolutionError(f"{failed}, but {name[:200]!a}", kind=Kind.NO_HOST_NAME, hint=hint)
    return name


def service_name(lustre_service: int, host: str) -> str:
    """The host-based service name (RFC 2743, 4.1) of field 6's service on ``host``."""
    return f"{SERVICES[lustre_service]}@{host}"
