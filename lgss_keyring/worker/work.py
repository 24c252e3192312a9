"""What a worker does: become the user, then negotiate."""

from __future__ import annotations

import os

from lgss_keyring.formats import config
from lgss_keyring.formats.errors import ConfigError
from lgss_keyring.worker import channel, identity, namespaces, negotiation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Established, Failed
    from lgss_keyring.worker.monitor_connection import MonitorConnection
    from lgss_keyring.worker.namespaces import Place


def run(
    request: UpcallRequest, settings: Config, monitor: int, forked: int, connection: MonitorConnection
) -> Established | Failed:
    """The worker's part; nothing before :func:`identity.become` may read what the
    user controls."""
    connection.alone()
    identity.replace_environment(settings.krb5.config, settings.names.canonicalize)
    # Loaded while still root: the user need not be able to read the installation, and
    # his mount namespace need not have it.
    negotiation.preload(request)
    acceptor = channel.for_request(request, settings, connection.carry)
    gid = request.requestor_gid if request.requestor_uid == request.uid else request.gid
    if request.uid and not gid and request.requestor_uid == 0:
        gid = identity.NOGROUP  # root's own, not this user's
    gid = identity.primary_group(request.uid, gid)
    connection.group(gid)
    place = namespaces.find(request, forked, settings.upcall.containers)
    if place is not None and request.is_machine:
        settings = _container(settings, place)
    elif not request.is_machine:
        if place is not None and "net" in place.different:
            acceptor.connect()
        identity.become(request.uid, gid, place.enter if place else None)
        identity.die_with(monitor)
        if not settings.names.canonicalize:
            _check_names(connection, inside=place is not None and "mnt" in place.different)
    where = (
        f", credentials in {' and '.join(sorted(place.different))} of process {place.pid}" if place else ""
    )
    connection.report("debug", f"working as uid {os.getuid()}, gid {os.getgid()}{where}")
    return negotiation.negotiate(request, settings, acceptor, connection.report)


def _check_names(connection: MonitorConnection, inside: bool) -> None:
    """Whether the file that keeps libkrb5 from changing names can be read, by this user,
    here; it takes no notice of one that it cannot read."""
    if os.access(identity.AS_IT_IS, os.R_OK):
        return
    if not inside:
        raise ConfigError(
            f"[names] canonicalize is off, and uid {os.getuid()} cannot read {identity.AS_IT_IS}",
            hint="make it, and the folders above, readable for everybody",
        )
    connection.report(
        "warning", "[names] canonicalize: the krb5.conf of that mount namespace decides, not ours"
    )


def _container(settings: Config, place: Place) -> Config:
    """The settings for a machine credential of a container: its keytab, and nothing of
    the host's caches, nor of its keytab (CVE-2021-20208)."""
    path = settings.krb5.keytab.removeprefix("FILE:")
    values = {**settings.krb5.__dict__, "keytab": f"FILE:/proc/self/fd/{place.open_below(path)}"}
    return config.Config(**{**settings.__dict__, "krb5": config.ContainerKrb5(**values)})
