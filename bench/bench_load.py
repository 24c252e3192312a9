"""What one user's attack costs root and another user: the figures for issue 11, in one table.

Quiet and attacked times are measured in turns, so that whatever else the machine does meets
both.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import click

from tests.support import load, peers
from tests.support.site import Site, Upcalls
from tests.support.stage import TestingError

HELD = 200
ROUND = 7
HELD_SECONDS, STORM_SECONDS = 12, 8
"""--timeout of the attacked rules: so long an attack has an effect."""
FULL_HEIGHT_SECONDS = 2.0


def processes(site: Site) -> list[int]:
    """The pids of all processes of the site's upcalls."""
    folder = str(site.stage.directory).encode()
    found = []
    for pid in load.pids():
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if any(word.startswith(folder) for word in file.read().split(b"\0")):
                    found.append(pid)
    return found


def wait_until_over(site: Site) -> None:
    """Wait for the end of what an attack has left."""
    end = time.monotonic() + 60
    while processes(site):
        if time.monotonic() > end:
            raise TestingError("upcalls of the attack do not end")
        time.sleep(0.05)


def attacked(
    site: Site,
    upcalls: Upcalls,
    rounds: int,
    attack: Callable[[], contextlib.AbstractContextManager[object]],
    look: Callable[[], None] = lambda: None,
) -> list[str]:
    """The figures of one attack: how many times longer the others' requests take."""
    quiet, loaded = load.Times(upcalls), load.Times(upcalls)
    for _ in range(rounds):
        quiet.measure(ROUND)
        with attack():
            time.sleep(FULL_HEIGHT_SECONDS)
            look()
            loaded.measure(ROUND)
            look()
        wait_until_over(site)
    figures = []
    for name, uid in (("root", 0), ("another user", load.OTHER_UID)):
        blocked, context = loaded.ratios(quiet, uid)
        figures.append(f"{name}: blocked {blocked:.2f} times, context {context:.2f} times")
    return figures


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds per attack.")
def main(rounds: int) -> None:
    """Attack this machine's upcalls as one user and measure the others; needs root."""
    peaks = {"processes": 0, "memory": 0}

    with Site() as site, peers.Silent() as peer, load.quota(2000), site.upcalls() as upcalls:
        for uid in (load.ATTACKER, load.OTHER_UID):
            site.kinit(uid)
        load.Times(upcalls).measure(3)
        silent = {"rpcsec_gss": {"port": peer.port, "reply_timeout": 2}}

        def look() -> None:
            pids = processes(site)
            peaks["processes"] = max(peaks["processes"], len(pids))
            peaks["memory"] = max(peaks["memory"], load.pss(pids))

        with (
            site.upcalls(silent, f"--timeout {HELD_SECONDS}") as held,
            site.upcalls(options=f"--timeout {STORM_SECONDS}") as stormed,
        ):
            attacks: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
                f"{HELD} of one uid held open": lambda: load.held_open(held, load.ATTACKER, HELD),
                "storm of 8 loops that wait for nothing": lambda: load.storm(stormed, load.ATTACKER),
                "storm of 16 loops that wait": lambda: load.storm(stormed, load.ATTACKER, 16, wait=True),
            }
            click.echo("attack | figure")
            for name, attack in attacks.items():
                is_held = name.startswith(str(HELD))
                figures = attacked(site, upcalls, rounds, attack, look if is_held else lambda: None)
                if is_held:
                    figures.insert(0, f"{peaks['processes']} processes, {peaks['memory'] >> 20} MiB (PSS)")
                for figure in figures:
                    click.echo(f"{name} | {figure}")


if __name__ == "__main__":
    main()
