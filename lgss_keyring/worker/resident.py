"""The resident worker: it becomes one user for good, and serves request after request of that user.

``lgssd`` forks it with all that is imported here, so that no request waits for a Python that has
just been started.  :mod:`lgss_keyring.formats.job_messages` has what the two say to each other,
:mod:`.resident_loop` the order of the work, and :mod:`.resident_job` one request.  The request's
answer and the words of its failure are those of :mod:`.work`, where a worker serves one request.
"""

from __future__ import annotations

import gc
import os

from lgss_keyring.formats import job_messages
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.system import keyrings
from lgss_keyring.worker import confinement, identity, monitor_connection, work

# Loaded while this is root, and for all requests to come: the user need not be able to read them.
from lgss_keyring.worker.channel import lustre, rpcsec_gss  # noqa: F401
from lgss_keyring.worker.creds import machine, user  # noqa: F401
from lgss_keyring.worker.mech import gssnull, krb5  # noqa: F401
from lgss_keyring.worker.resident_loop import ResidentLoop

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import NoReturn

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config


def run(
    connection: socket.socket,
    page: job_messages.Page,
    uid: int,
    is_machine: bool,
    first: UpcallRequest,
    settings: Config,
    level: str,
) -> NoReturn:
    """Serve the requests of ``uid``, or the machine's, that come through ``connection``, until lgssd
    closes it.  In the child right after the fork, as root.

    ``first`` is the request that the worker is made for; it decides on the group of a user without an
    entry in passwd(5).  ``level`` is the least urgent level of the log: steps below it are not sent.
    If it cannot go on, the last step on ``page`` says why.
    """
    try:
        page.busy(0)
        identity.stay_undumpable()
        _leave_behind(connection, settings)
        _become(connection, page, uid, is_machine, first)
        gc.collect()
        gc.freeze()
        ResidentLoop(connection, page, uid, is_machine, settings, level).run()
    except BaseException as error:
        page.step(f"the worker cannot go on: {Failed.by(error).reason}")
    finally:
        os._exit(1)


def _leave_behind(connection: socket.socket, settings: Config) -> None:
    """Give up what lgssd has and a user's process must not have."""
    identity.die_with(os.getppid())
    identity.forget_signals()
    monitor_connection.close_descriptors_but(connection.fileno())
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    if null > 2:
        os.close(null)
    os.chdir("/")
    os.umask(0o077)
    confinement.bound()
    keyrings.leave_session()
    identity.replace_environment(settings.krb5.config, settings.names.canonicalize)


def _become(
    connection: socket.socket, page: job_messages.Page, uid: int, is_machine: bool, first: UpcallRequest
) -> None:
    page.step("looking up the user's group")
    gid, from_passwd = work.primary_group(first)
    connection.send(job_messages.pack_group(gid, from_passwd))
    if not is_machine:
        lgssd = os.getppid()
        identity.become(uid, gid)
        identity.die_with(lgssd)
