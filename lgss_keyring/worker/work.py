"""What a worker does: become the user, then negotiate."""

from __future__ import annotations

import os

from lgss_keyring.formats import config
from lgss_keyring.formats.errors import ConfigError
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.worker import channel, confinement, identity, krb5_conf, names, namespaces, negotiation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Established
    from lgss_keyring.worker.channel.interface import Channel
    from lgss_keyring.worker.monitor_connection import MonitorConnection
    from lgss_keyring.worker.namespaces import RequestorNamespaces


def run(
    request: UpcallRequest, settings: Config, monitor: int, forked: int, connection: MonitorConnection
) -> Established | Failed:
    """Do all of a worker's work for ``request``, in the worker's process, which is root at first.

    ``monitor`` is the pid of the monitor, ``forked`` the start time (clock ticks since boot) that the
    process of callout field 10 must not be younger than.  Nothing before
    :func:`identity.become` may read what the user controls.  Raises LgssError.
    """
    connection.close_other_descriptors()
    confinement.bound()
    identity.replace_environment(settings.krb5.config, settings.names.canonicalize)
    # Loaded while still root: the user need not be able to read the installation, and
    # the user's mount namespace need not have it.
    negotiation.preload(request)
    acceptor = channel.for_request(request, settings, connection.send_token)
    gid, _ = primary_group(request)
    connection.send_group(gid)
    # The program that is asked for some names runs as root, never as the user.
    host = names.target_host_name(request, settings) if names.needs_program(request, settings) else ""
    folder = settings.krb5.ccache_directory
    found = namespaces.find(request, forked, settings.upcall.containers, folder)
    if not request.is_machine:
        _become_user(request, gid, found, acceptor, monitor)
        if not settings.names.canonicalize:
            _check_names_file(connection, inside=found is not None and "mnt" in found.different)
    elif found is not None:
        settings = _for_container(settings, found)
    where = (
        f", credentials in {' and '.join(sorted(found.different))} of process {found.pid}" if found else ""
    )
    connection.report("debug", f"working as uid {os.getuid()}, gid {os.getgid()}{where}")
    outcome = negotiation.negotiate(
        request, settings, acceptor, connection.report, host, connection.credential_ready
    )
    return krb5_conf.with_missing_file(outcome, settings.krb5) if isinstance(outcome, Failed) else outcome


def primary_group(request: UpcallRequest) -> tuple[int, bool]:
    """The gid that the worker takes, and whether it is from passwd(5)."""
    known = identity.primary_group(request.uid)
    return (claimed_group(request), False) if known is None else (known, True)


def claimed_group(request: UpcallRequest) -> int:
    """The gid for a user without an entry in passwd(5): the requestor's if the requestor is that user,
    else that of the callout."""
    gid = request.requestor_gid if request.requestor_uid == request.uid else request.gid
    if request.uid and not gid and request.requestor_uid == 0:
        gid = identity.NOGROUP  # root's own, not this user's
    return gid


def _become_user(
    request: UpcallRequest, gid: int, found: RequestorNamespaces | None, acceptor: Channel, monitor: int
) -> None:
    """Enter the namespaces in ``found``, if there are any, confined as the process there, and
    become the user for good."""
    if found is not None:
        confinement.confine_like(found.task, request.uid)
    if found is not None and "net" in found.different:
        acceptor.connect()
    identity.become(request.uid, gid, found.enter if found else None)
    identity.die_with(monitor)


def _check_names_file(connection: MonitorConnection, inside: bool) -> None:
    """As :func:`check_names_file`; but ``inside`` another mount namespace it is only a warning."""
    try:
        check_names_file()
    except ConfigError:
        if not inside:
            raise
        connection.report(
            "warning", "[names] canonicalize: the krb5.conf of that mount namespace decides, not ours"
        )


def check_names_file() -> None:
    """Check that this user can read the file that keeps libkrb5 from changing names: libkrb5 takes no
    notice of one that it cannot read.  Raises ConfigError."""
    if not os.access(identity.NAMES_AS_THEY_ARE, os.R_OK):
        raise ConfigError(
            f"[names] canonicalize is off, and uid {os.getuid()} cannot read {identity.NAMES_AS_THEY_ARE}",
            hint="make it, and the folders above, readable for everybody",
        )


def _for_container(settings: Config, found: RequestorNamespaces) -> Config:
    """The settings for a machine credential of a container: its keytab, and nothing of
    the host's caches, nor of the host's keytab (CVE-2021-20208)."""
    path = settings.krb5.keytab.removeprefix("FILE:")
    values = {**settings.krb5.__dict__, "keytab": f"FILE:/proc/self/fd/{found.open_below(path)}"}
    return config.Config(**{**settings.__dict__, "krb5": config.ContainerKrb5(**values)})
