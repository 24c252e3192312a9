"""Host names and service names (docs/protocol.md 3 and 4), by tables, resolvers and programs."""

from __future__ import annotations

import _thread
import errno
import os
import signal
import socket
import stat
import time

from lgss_keyring.formats.errors import Kind, ResolutionError
from lgss_keyring.formats.nid import (
    IPV4_TYPES,
    LO,
    PTL4,
    Nid,
    ip_address,
    ipv6_nid_of_mgc,
    is_no_host_address,
    may_be_ipv6,
)
from lgss_keyring.worker.identity import ENVIRONMENT
from lgss_keyring.worker.limits import LINKS, NAME_SECONDS, NAMES, PROGRAM_LINE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config, Names

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
SERVICES = ("lustre_mgs", "lustre_mds", "lustre_oss")


def target_host_name(request: UpcallRequest, config: Config) -> str:
    """The host name of the server that ``request`` is for.

    ``[hosts]`` may have it by the name of the target, in full (callout field 8) or up to the
    client's part (``lustre-MDT0000`` of ``lustre-MDT0000-mdc-ffff8f00``): a
    server with an IPv6 NID has to be named so, as a kernel passes a wrong one in field 7
    (docs/protocol.md 2).  For an MGC field 8 has the true one.  All other hosts, and the errors, are as
    for :func:`host_name`.
    """
    target = target_name(request.obd_name)
    for key in (request.obd_name, target):
        if key in config.hosts:
            return config.hosts[key]
    mgs = ipv6_nid_of_mgc(request.obd_name)
    if mgs is not None:
        return _ipv6_host_name(mgs, config)
    nid = Nid.from_int(request.target_nid)
    try:
        return host_name(nid, config)
    except ResolutionError as error:
        if error.kind != Kind.NO_HOST_NAME or not may_be_ipv6(nid):
            raise
        raise ResolutionError(
            f"{error.reason} (the beginning of an IPv6 address? Lustre's kernel cannot pass IPv6 NIDs "
            "here yet)",
            kind=error.kind,
            hint=f'name the host in [hosts]: "{target}" = "NAME"',
        ) from error


def target_name(obd_name: str) -> str:
    """The name of the target that an obd device is connected to: what stands before the client's part."""
    for separator in ("-mdc-", "-osc-", "-osp-", "-lwp-"):
        target, found, _ = obd_name.partition(separator)
        if found:
            return target
    return obd_name


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
    if is_no_host_address(nid):
        raise ResolutionError(f"{nid} is no host's address", kind=Kind.NO_HOST_NAME, hint=hint)
    return _reverse_dns(address, str(nid), config, hint)


def _ipv6_host_name(nid: str, config: Config) -> str:
    """The host name of a NID in text form whose address is an IPv6 address; as :func:`host_name`."""
    address = nid.partition("@")[0]
    for key in (nid, address):
        if key in config.hosts:
            return config.hosts[key]
    return _reverse_dns(address, nid, config, f'add it to [hosts]: "{nid}" = "NAME"')


def _reverse_dns(address: str, nid: str, config: Config, hint: str) -> str:
    if not config.names.reverse_dns:
        raise ResolutionError(
            f"NID {nid} is not in [hosts], and [names] reverse_dns is off", kind=Kind.NO_HOST_NAME, hint=hint
        )
    try:
        return _from_resolver(
            lambda: socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0], f"NID {nid}", config.names
        )
    except OSError as error:
        raise ResolutionError(
            f"address {address} of NID {nid} has no host name: {error.strerror or error}",
            kind=Kind.NO_HOST_NAME,
            hint=f"add it to reverse DNS or /etc/hosts; or {hint}",
        ) from error


def own_name(self_nid: int, config: Config) -> str:
    """This node's host name (docs/protocol.md 4): that of its own NID when that is not 0 and
    not part of an IPv6 address, else :func:`own_host_name`.  Raises ResolutionError."""
    nid = Nid.from_int(self_nid)
    if not self_nid or (is_no_host_address(nid) and str(nid) not in config.hosts):
        return own_host_name(config)
    return host_name(nid, config)


def own_name_source(self_nid: int, config: Config) -> str:
    """The source that :func:`own_name` takes the name from, for people."""
    nid = Nid.from_int(self_nid)
    node = os.uname().nodename
    if self_nid and not is_no_host_address(nid) and nid.network_type in IPV4_TYPES:
        address = ip_address(nid)
        keys, resolver = [str(nid), address], f"reverse DNS or /etc/hosts, for address {address} of NID {nid}"
    elif self_nid and nid.network_type == PTL4:
        keys, resolver = [str(nid)], f"{config.names.program}, for NID {nid}"
    else:
        keys, resolver = [str(nid), node], f"the host name {node} (uname -n) and the name service"
    for key in keys:
        if key in config.hosts:
            return f'[hosts] of {config.path}, by "{key}"'
    return resolver


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
            _from_resolver(
                # Bytes: for text Python would load the tables of IDNA, which a user in a
                # mount namespace of their own may not have.
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


_found: dict[str, tuple[float, str]] = {}
"""Names that the resolver has told, by subject, and when (time.monotonic())."""


def _from_resolver(call: Callable[[], str], subject: str, names: Names) -> str:
    """The result of ``call``, as :func:`_bounded`; or its last one if that is younger than
    ``limits.NAME_SECONDS``.

    A resident worker may get hundreds of requests for one server at once, and nothing else of them
    waits for a name server.
    """
    now = time.monotonic()
    last = _found.get(subject)
    if last is not None and now - last[0] < NAME_SECONDS:
        return last[1]
    name = _bounded(call, subject, names)
    if len(_found) >= NAMES:
        _found.clear()
    _found[subject] = now, name
    return name


def _bounded(call: Callable[[], str], subject: str, names: Names) -> str:
    """The result of ``call``, which asks the C library and cannot be told to give up.  So it
    runs in a thread, which is left behind when ``[names] timeout`` is over.

    Where no thread can be started it runs here, bounded by the monitor's deadline alone.  Raises
    what ``call`` raises, or ResolutionError.
    """
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

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError:
        return call()
    if not done.acquire(timeout=names.timeout):
        raise ResolutionError(
            f"no name service told the name of {subject} within {names.timeout} s",
            errno=errno.ETIMEDOUT,
            kind=Kind.NAME_TIMEOUT,
            hint="check the name servers in /etc/resolv.conf; [hosts] makes them needless, [names] timeout "
            "sets this limit",
        )
    (value,) = result
    if isinstance(value, BaseException):
        raise value
    return value


# The program for ptl4 networks.


def needs_program(request: UpcallRequest, config: Config) -> bool:
    """Whether ``[names] program`` is what knows the host name of the target of ``request``.  Then
    :func:`target_host_name` has to be called while this process is root."""
    nid = Nid.from_int(request.target_nid)
    known = (str(nid), request.obd_name, target_name(request.obd_name))
    return nid.network_type == PTL4 and not any(key in config.hosts for key in known)


def preload(nid: Nid) -> None:
    """Import what only networks of that type need."""
    if nid.network_type == PTL4:
        import subprocess  # noqa: F401


def _by_program(nid: Nid, names: Names, hint: str) -> str:
    """The host name by ``[names] program`` (docs/protocol.md 3), called by an argument vector: no
    shell (CVE-2020-14342).

    It runs as root, and so only if root alone can write it.  It does not run as the
    user: execve(2) makes a process dumpable, so another process of that user could trace it and
    would run outside of the user's cgroup for good.
    """
    failed = f"{names.program} did not tell the host name of NID {nid}"
    if os.geteuid() != 0:
        raise ResolutionError(f"{failed}: it is run by root only", hint=hint)
    try:
        other = _first_writable_by_others(names.program)
        if other:
            raise ResolutionError(
                f"{failed}: others than root may write it, by {other}",
                hint=f"chown root {other}; chmod go-w {other}",
            )
        text = _output_of(names, nid)
    except (OSError, ValueError) as error:
        raise ResolutionError(f"{failed}: {error}", kind=Kind.NO_HOST_NAME, hint=hint) from error
    name = text.strip()
    if name.startswith("@"):
        raise ResolutionError(f"{failed}: it says {name[1:200]!a}", kind=Kind.NO_HOST_NAME, hint=hint)
    if not name or not set(name) <= NAME_CHARACTERS:
        raise ResolutionError(f"{failed}, but {name[:200]!a}", kind=Kind.NO_HOST_NAME, hint=hint)
    return name


def _output_of(names: Names, nid: Nid) -> str:
    """The first line that the program writes, with all that it has started ended afterwards.
    Raises OSError, ValueError (no ASCII), ResolutionError (too slow)."""
    import subprocess

    with subprocess.Popen(
        [names.program, "PTL4LND", f"{nid.network_number:#x}", f"{nid.address:#x}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        # Unbuffered, so that a reader that is left behind holds no lock that we wait for;
        # a session of its own, so that all of it can be ended.
        bufsize=0,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            stream = process.stdout
            return _bounded(lambda: stream.readline(PROGRAM_LINE_BYTES).decode("ascii"), f"NID {nid}", names)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def _first_writable_by_others(path: str) -> str:
    """The first file, folder or link on the way to ``path`` that others than root can write or
    replace; empty if there is none.  Raises OSError.

    In a sticky folder nobody else can replace what is root's.
    """
    parts = path.split("/")[::-1]
    reached, links = "/", 0
    while parts:
        part = parts.pop()
        if part == "..":
            reached = os.path.dirname(reached)
        if part in ("", ".", ".."):
            continue
        reached = os.path.join(reached, part)
        status = os.lstat(reached)
        if status.st_uid != 0:
            return reached
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink(reached)
            reached = "/" if target.startswith("/") else os.path.dirname(reached)
            parts += target.split("/")[::-1]
            continue
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_mode & 0o022 and not sticky:
            return reached
    return ""


def service_name(lustre_service: int, host: str) -> str:
    """The host-based service name (RFC 2743, 4.1) of field 6's service on ``host``."""
    return f"{SERVICES[lustre_service]}@{host}"
