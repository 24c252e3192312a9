"""What an upcall costs: the caller's blocked time, the time to the context, CPU.

The front (a) against the least that a handler can do in Python (b, bare.py) and in C
(c, bare.c), interleaved, so that whatever else the machine does meets all three.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import click

from tests.support import runs
from tests.support.cgroup import Cgroup
from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, Upcalls, user_callout
from tests.support.stage import Stage, TestingError

HERE = Path(__file__).parent
CPU_ROUNDS = 20
# Without a folder for the count nothing bounds a user's lines in the log, which tell when an
# upcall has ended.
SETTINGS = {"log": {"level": "info"}, "krb5": {"ccache_directory": "/nonexistent/lgss"}}


def build_c(directory: Path) -> Path | None:
    """Handler (c), or None where there is no compiler or no libkeyutils header."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    program = directory / "bare"
    command = [compiler, "-O2", "-o", str(program), str(HERE / "bare.c"), "-lkeyutils"]
    return program if subprocess.run(command, check=False).returncode == 0 else None


def quiet(upcalls: Upcalls, events: int) -> None:
    """Wait until the upcall has ended, so that its last work is not timed with the next."""
    end = time.monotonic() + 5
    while sum(event.get("LGSS_STEP") == "updated" for event in upcalls.log()) < events:
        if time.monotonic() > end:
            raise TestingError(f"no context: {[event['message'] for event in upcalls.log()][-3:]}")
    time.sleep(0.01)


def measure_times(site: Site, rounds: int, directory: Path) -> dict[str, list[float]]:
    """Milliseconds blocked for each handler, and until the key is updated."""
    bare = site.stage.directory / "bare.py"
    Stage.write_front(HERE / "bare.py", bare)
    c_program = build_c(directory)
    figures: dict[str, list[float]] = {"blocked": [], "bare_python": [], "updated": []}
    if c_program:
        figures["c"] = []
    rules = {"blocked": site.upcalls(SETTINGS), "bare_python": site.upcalls(program=bare)}
    if c_program:
        rules["c"] = site.upcalls(program=c_program)
    try:
        # The bare handlers know no options: their rules pass none.
        for name in ("bare_python", "c"):
            if name in rules:
                text = rules[name].rule.path.read_text()
                rules[name].rule.path.write_text(text.replace(f"--config {rules[name].config_file} ", ""))
        for turn in range(-3, rounds):
            # A requestor a round: its keys go with it, or they would use up the quota.
            with Requestor(USER_UID) as user:
                for name, upcalls in rules.items():
                    ours = name == "blocked"
                    answer = user.ask(upcalls.name(), user_callout(), wait=5.0 if ours else 0.0)
                    if answer.error or (ours and answer.updated is None):
                        raise TestingError(f"{name}: errno {answer.error}, updated {answer.updated}")
                    if ours:
                        quiet(upcalls, turn + 4)
                    if turn < 0:
                        continue  # caches and the service ticket get warm
                    figures[name].append(answer.blocked * 1000)
                    if ours and answer.updated is not None:
                        figures["updated"].append(answer.updated * 1000)
    finally:
        for upcalls in rules.values():
            upcalls.close()
    return figures


def measure_resources(site: Site) -> dict[str, list[float]]:
    """CPU milliseconds and peak PSS (KiB) of all the processes of an upcall."""
    figures: dict[str, list[float]] = {"cpu": [], "pss": []}
    with Cgroup() as cgroup:
        wrapper = site.stage.directory / "wrapper"
        cgroup.write_wrapper(wrapper, site.stage.program)
        with (
            site.upcalls(SETTINGS, program=wrapper) as upcalls,
            Requestor(USER_UID) as user,
        ):
            for turn in range(CPU_ROUNDS):
                before = cgroup.cpu()
                user.start(upcalls.name(), user_callout(), wait=5.0)
                peak = 0
                # Sampling costs CPU time of ours, none of the upcall's; in every
                # second round, to keep the other half's time undisturbed.
                while turn % 2 and len(upcalls.log()) < turn + 1:
                    peak = max(peak, cgroup.pss())
                user.result()
                cgroup.wait_empty(5)
                if turn % 2:
                    figures["pss"].append(peak / 1024)
                else:
                    figures["cpu"].append((cgroup.cpu() - before) * 1000)
    return figures


def row(name: str, values: list[float], unit: str) -> str:
    """A line of the table: median, quartiles, extremes."""
    low, _, high = statistics.quantiles(values, n=4)
    return (
        f"{name:34} {statistics.median(values):9.2f} {low:9.2f} {high:9.2f} {min(values):9.2f} "
        f"{max(values):9.2f}  {unit}"
    )


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep every figure in this file.")
@click.option("--rounds", default=100, show_default=True, type=click.IntRange(2), help="Interleaved rounds.")
def main(json_file: Path | None, rounds: int) -> None:
    """Measure upcalls on this machine's kernel; needs root."""
    for line in runs.remove_dead():
        click.echo(line, err=True)
    runs.begin()
    with Site() as site:
        site.kinit()
        figures = measure_times(site, rounds, site.stage.directory)
        figures |= measure_resources(site)
    click.echo(f"{'':34} {'median':>9} {'q1':>9} {'q3':>9} {'min':>9} {'max':>9}")
    click.echo(row("blocked: lgss_keyring (a)", figures["blocked"], "ms"))
    click.echo(row("blocked: bare Python handler (b)", figures["bare_python"], "ms"))
    if "c" in figures:
        click.echo(row("blocked: bare C handler (c)", figures["c"], "ms"))
    click.echo(row("key updated after the request", figures["updated"], "ms"))
    click.echo(row("CPU time of one upcall", figures["cpu"], "ms"))
    click.echo(row("peak memory of one upcall (PSS)", figures["pss"], "KiB"))
    summary: dict[str, Any] = {name: statistics.median(values) for name, values in figures.items()}
    if json_file:
        json_file.write_text(json.dumps({"rounds": rounds, "medians": summary, "samples": figures}, indent=1))
    against_c = f"{summary['blocked'] / summary['c']:.2f}" if "c" in summary else "none"
    click.echo(
        f"bench: blocked_ms={summary['blocked']:.2f} "
        f"vs_bare_python={summary['blocked'] / summary['bare_python']:.3f} vs_c={against_c} "
        f"updated_ms={summary['updated']:.1f} cpu_ms={summary['cpu']:.1f}"
    )


if __name__ == "__main__":
    main()
