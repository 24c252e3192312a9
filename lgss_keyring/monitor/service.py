"""A request's way through its worker, for whoever carries requests: the upcall's child,
or lgssd.  Knows no key."""

from __future__ import annotations

import os

from lgss_keyring.formats import config
from lgss_keyring.formats.errors import ConfigError
from lgss_keyring.monitor.privsep import Answer, Worker
from lgss_keyring.system import keys
from lgss_keyring.worker import channel, identity, namespaces, negotiation
from lgss_keyring.worker.channel import lustre

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.monitor.privsep import Line
    from lgss_keyring.system.log import Log
    from lgss_keyring.worker.namespaces import Place
    from lgss_keyring.worker.negotiation import Established, Failed


def serve(
    request: UpcallRequest,
    settings: Config,
    forked: int,
    deadline: float,
    limit: str,
    setting: str,
    log: Log,
) -> Answer:
    """The answer to ``request``, by a worker of its own.

    ``forked`` (clock ticks) bounds the start of the process whose namespaces it may name;
    ``deadline`` is of time.monotonic(), ``limit`` and ``setting`` name it for people.
    Raises LgssError for what is wrong before there is a worker.
    """
    # Only who asks for himself brings his credentials along: root's session keyring
    # must not lend its TGT to the user that root asks for, nor a user's to the machine.
    if request.is_machine or request.requestor_uid != request.uid:
        keys.unlink_requestor(request.keyrings)
    elif not request.pid:
        # Whether he is a process of root's that works for this user (setfsuid(2)) nobody
        # tells us; so what is not this user's own is taken for root's.
        keys.unlink_requestor(
            tuple(ring for ring in request.keyrings if ring and not keys.owned(ring, request.uid))
        )

    monitor = os.getpid()
    carrier = lustre.Carrier(request, settings) if request.key_type == "lgssc" else None

    def work(line: Line) -> Established | Failed:
        return _work(request, settings, monitor, forked, line)

    def report(level: str, text: str) -> None:
        what = "request" if request.description == "pipe" else "key"
        log.event(level, f"{what} {request.key}: {text}", step="negotiation")

    # The code of a container runs in there (its name service, its plug-ins of libkrb5), as
    # this user but not as confined as he is: at least it shall see no process out here.
    hidden = not request.is_machine and namespaces.foreign(request.pid)
    return Worker(work, carrier, hidden).wait(deadline, limit, setting, report)


def _work(
    request: UpcallRequest, settings: Config, monitor: int, forked: int, line: Line
) -> Established | Failed:
    """The worker's part; nothing before :func:`identity.become` may read what the
    user controls."""
    line.alone()
    identity.replace_environment(settings.krb5.config, settings.names.canonicalize)
    # Loaded while still root: the user need not be able to read the installation, and
    # his mount namespace need not have it.
    negotiation.preload(request)
    way = channel.for_request(request, settings, line.carry)
    gid = request.requestor_gid if request.requestor_uid == request.uid else request.gid
    if request.uid and not gid and request.requestor_uid == 0:
        gid = identity.NOGROUP  # root's own, not this user's
    gid = identity.primary_group(request.uid, gid)
    line.group(gid)
    place = namespaces.find(request, forked, settings.upcall.containers)
    if place is not None and request.is_machine:
        settings = _container(settings, place)
    elif not request.is_machine:
        if place is not None and "net" in place.different:
            way.connect()
        identity.become(request.uid, gid, place.enter if place else None)
        identity.die_with(monitor)
        if not settings.names.canonicalize:
            _check_names(line, inside=place is not None and "mnt" in place.different)
    where = (
        f", credentials in {' and '.join(sorted(place.different))} of process {place.pid}" if place else ""
    )
    line.report("debug", f"working as uid {os.getuid()}, gid {os.getgid()}{where}")
    return negotiation.negotiate(request, settings, way, line.report)


def _check_names(line: Line, inside: bool) -> None:
    """Whether the file that keeps libkrb5 from changing names can be read, by this user,
    here; it takes no notice of one that it cannot read."""
    if os.access(identity.AS_IT_IS, os.R_OK):
        return
    if not inside:
        raise ConfigError(
            f"[names] canonicalize is off, and uid {os.getuid()} cannot read {identity.AS_IT_IS}",
            hint="make it, and the folders above, readable for everybody",
        )
    line.report("warning", "[names] canonicalize: the krb5.conf of that mount namespace decides, not ours")


def _container(settings: Config, place: Place) -> Config:
    """The settings for a machine credential of a container: its keytab, and nothing of
    the host's caches, nor of its keytab (CVE-2021-20208)."""
    path = settings.krb5.keytab.removeprefix("FILE:")
    values = {**settings.krb5.__dict__, "keytab": f"FILE:/proc/self/fd/{place.open_below(path)}"}
    return config.Config(**{**settings.__dict__, "krb5": config.ContainerKrb5(**values)})
