"""How long callers are blocked while a user attacks, against a bare handler in the same attack."""

from __future__ import annotations

import statistics

import click

from tests.support.blocked import BARE, Callers
from tests.support.keyring_attack import LEVELS, PROCESSES, WIDTH, KeyringAttack
from tests.support.site import Site

ATTACKER, OTHER = 61321, 61322
LONGEST = 300.0
"""Seconds after which an attack ends by itself."""


@click.command()
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(2), help="Interleaved rounds.")
def main(rounds: int) -> None:
    """Measure with this machine's kernel; needs root."""
    with Site() as site:
        site.kinit(OTHER)
        with Callers(site, OTHER) as callers:
            quiet = callers.measure(rounds)
            with KeyringAttack(ATTACKER, LONGEST) as attack:
                attacked = callers.measure(rounds)
    click.echo(
        f"A user with {LEVELS} levels of {WIDTH} keyrings and {PROCESSES} processes that link them: "
        f"{attack.looks} links, the longest took {attack.longest:.2f} s"
    )
    click.echo(
        f"{'blocked, median of ' + str(rounds):34} {'quiet':>10} {'attacked':>10} {'against bare':>14}"
    )
    bare = statistics.median(attacked[BARE])
    for name, values in attacked.items():
        before, now = statistics.median(quiet[name]), statistics.median(values)
        click.echo(f"{name:34} {before * 1000:7.1f} ms {now * 1000:7.1f} ms {now / bare:14.2f}")


if __name__ == "__main__":
    main()
