"""``python -m lgss_keyring.daemon``: lgssd in the foreground."""

from __future__ import annotations

import os
import sys

import click

from lgss_keyring.daemon import activation, descriptors, notify, server, sockets, upcalls
from lgss_keyring.daemon.life import Life
from lgss_keyring.daemon.program import Program
from lgss_keyring.daemon.settings import Settings
from lgss_keyring.formats import config
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.pipe import DEFAULT_SOCKET
from lgss_keyring.front import known_failure
from lgss_keyring.system import keyrings
from lgss_keyring.system.log import Log
from lgss_keyring.worker import namespaces


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
    environment = dict(os.environ)
    notifier = notify.Notifier(os.environ)
    try:
        listening = sockets.Sockets(path, upcall_path, os.environ)
    except activation.ActivationError as error:
        raise click.ClickException(f"started with sockets that it cannot use: {error}") from error
    try:
        current = Settings(config_path)
    except LgssError as error:
        listening.send_away()
        raise click.ClickException(str(error)) from error
    # The session keyring is that of the administrator who starts lgssd, whose tickets are not
    # the users'.
    keyrings.leave_session()
    os.umask(0o077)
    descriptors.allow_more()
    _preload()
    if listening.are_systemds and os.getppid() == 1:
        # A unit may have a mount namespace of its own, with the same files, some of them read-only.
        namespaces.home = known_failure.home = "1"
    try:
        listening.listen()
    except OSError as error:
        raise click.ClickException(f"cannot listen at {path} and {upcall_path}: {error.strerror}") from error
    try:
        _serve(listening, current, notifier, environment)
    finally:
        listening.let_go()


def _serve(
    listening: sockets.Sockets, current: Settings, notifier: notify.Notifier, environment: dict[str, str]
) -> None:
    """Serve until the end, and begin anew with ``environment`` where another program was installed."""
    settings = current.current
    log = Log(settings.log.level, settings.log.file, folder=settings.krb5.ccache_directory)
    life = Life(listening, current, log, notifier, Program(sys.argv[0]))
    serving = server.Server(current, log)
    if listening.pipe is not None:
        serving.serve_records(listening.pipe, listening.are_taken_over)
    if listening.upcall is not None:
        serving.serve_upcalls(listening.upcall)
        current.announce(listening.upcall.getsockname())
    serving.run(life, lambda: click.echo(f"listening at {listening}"))
    if life.begins_anew and not serving.is_told_to_end():
        life.begin_anew(sys.argv, environment)
        sys.exit(1)


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
