"""``python -m lgss_keyring.daemon``: lgssd in the foreground."""

from __future__ import annotations

import functools
import os

import click

from lgss_keyring.daemon import limits, requests, server, upcalls
from lgss_keyring.daemon.listener import listen
from lgss_keyring.daemon.settings import Settings
from lgss_keyring.formats import config
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.pipe import DEFAULT_SOCKET
from lgss_keyring.system import keyrings
from lgss_keyring.system.log import Log


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", "path", default=DEFAULT_SOCKET, show_default=True, help="The socket to listen at.")
@click.option(
    "--upcall-socket",
    "upcall_path",
    default=upcalls.DEFAULT_SOCKET,
    show_default=True,
    help="The socket for lgss_keyring's own processes.",
)
@click.option("--config", "config_path", help=f"Configuration (default: {config.DEFAULT_PATH}, if there).")
def main(path: str, upcall_path: str, config_path: str | None) -> None:
    """Negotiate GSS contexts: for upcalls of the kernel, and for processes that ask at a socket
    (sptlrpc's policy `pipe`).

    Runs in the foreground until SIGTERM. An ordinary user gets only contexts of their own.
    """
    if os.geteuid() != 0:
        raise click.ClickException("only root can become the users that it negotiates for")
    try:
        current = Settings(config_path)
        settings = current.current
    except LgssError as error:
        raise click.ClickException(str(error)) from error
    # The session keyring is that of the administrator who starts lgssd, whose tickets are not
    # the users'.
    keyrings.leave_session()
    os.umask(0o077)
    log = Log(settings.log.level, settings.log.file, folder=settings.krb5.ccache_directory)
    _preload()
    try:
        listener = listen(path)
        upcall_listener = upcalls.listen(upcall_path)
    except OSError as error:
        raise click.ClickException(f"cannot listen at {path} and {upcall_path}: {error.strerror}") from error
    try:
        handle = functools.partial(requests.handle, settings=settings)
        time_limit = settings.upcall.timeout + limits.MONITOR_MARGIN
        serving = server.Server(listener, handle, time_limit, log, requests.request_of)
        serving.serve_upcalls(upcall_listener, current)
        serving.run(lambda: click.echo(f"listening at {path}"))
    finally:
        # In this order: as long as this process listens, no other lgssd takes the path for that of
        # an lgssd that has ended.
        os.unlink(path)
        listener.close()
        os.unlink(upcall_path)
        upcall_listener.close()


def _preload() -> None:
    """Import what the workers need, once, before they are forked."""
    from lgss_keyring.worker import (
        krb5_library,  # noqa: F401
        mech,
    )
    from lgss_keyring.worker.creds import machine, user  # noqa: F401

    mech.load("krb5")


if __name__ == "__main__":
    main()
