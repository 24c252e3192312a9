"""Upcalls while the program is installed again and again: none may be lost.

1000 upcalls, 10 a second, over ten installs and five that fail, into a folder that a rule leads to.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from lgss_keyring.formats import payload
from tests.support import runs
from tests.support.installation import Installation, copy_checkout, upcalls_during
from tests.support.requestor import Answer
from tests.support.site import Site


def is_lost(answer: Answer) -> bool:
    """Whether an upcall came to anything but a context."""
    if answer.error or answer.read_error or answer.updated is None:
        return True
    return not isinstance(payload.unpack(answer.data), payload.ContextPayload)


@click.command()
@click.option("--upcalls", "count", default=1000, show_default=True, type=click.IntRange(1))
@click.option("--rate", default=10.0, show_default=True, help="Upcalls a second.")
@click.option("--installs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--failing", default=5, show_default=True, type=click.IntRange(0))
def main(count: int, rate: float, installs: int, failing: int) -> None:
    """Count the upcalls that are lost; exit status 1 if there are any."""
    for line in runs.remove_dead():
        click.echo(line, err=True)
    runs.begin()
    system = runs.folder("system")
    try:
        with tempfile.TemporaryDirectory() as folder, Site() as site:
            site.kinit()
            installation = Installation(system)
            broken = Installation(system, copy_checkout(Path(folder)))
            (broken.checkout / "lgss_keyring/monitor/upcall.py").write_text("no Python\n")
            installation.install()
            works: list[Callable[[], object]] = [installation.install] * installs
            for number in range(failing):
                works.insert((number + 1) * len(works) // (failing + 1), broken.refused)
            with site.upcalls({"log": {"level": "info"}}, program=installation.program) as upcalls:
                answers, errors = upcalls_during(upcalls, count, rate, works)
    finally:
        runs.remove(system)
    lost = [answer for answer in answers if is_lost(answer)]
    for answer in lost[:10]:
        click.echo(f"lost: {answer}")
    for error in errors:
        click.echo(f"an install: {error!r}")
    blocked = sorted(answer.blocked for answer in answers)
    click.echo(
        f"bench: upcalls={len(answers)} lost={len(lost)} installs={installs} failing={failing} "
        f"unexpected={len(errors)} blocked_ms={blocked[len(blocked) // 2] * 1000:.1f} "
        f"blocked_max_ms={blocked[-1] * 1000:.1f}"
    )
    if lost or errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
