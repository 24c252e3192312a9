"""What upcalls cost with lgssd and without, by both fronts: the figures of README's table.

Interleaved rounds, so that whatever else the machine does meets all of them.  Every process counts,
from the front that /sbin/request-key starts to the worker, and nothing is subtracted; what
/sbin/request-key itself and the kernel take is not counted as CPU time, but is in all the other
times.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from bench.bench_upcall import build_c, row
from bench.requests import BURST, HERE, USERS, WAIT, Bench, Lgssd, Result, checked, compile_c, moment, results
from tests.support import load, runs
from tests.support.cgroup import Cgroup
from tests.support.site import Site, Upcalls
from tests.support.stage import Stage


@contextlib.contextmanager
def measured(bench: Bench, program: Path, lgssd: bool) -> Iterator[tuple[Upcalls, Cgroup]]:
    """A rule for ``program`` whose processes, and lgssd's, are in a cgroup."""
    with Cgroup() as cgroup:
        procs = f'-DPROCS="{cgroup.path}/cgroup.procs"'
        wrapper = bench.folder / f"wrapper-{time.monotonic_ns()}"
        compile_c("in_cgroup.c", wrapper, "-static", procs, f'-DPROGRAM="{program}"')
        with contextlib.ExitStack() as stack:
            socket = ""
            if lgssd:
                with bench.site.upcalls(bench.settings) as upcalls:
                    config = upcalls.config_file
                daemon = Lgssd(bench.site, config, cgroup)
                stack.callback(daemon.close)
                socket = daemon.socket
            else:
                socket = "/nonexistent/lgssd"
            upcalls = bench.site.upcalls(bench.settings, f"--lgssd {socket}", program=wrapper)
            stack.enter_context(upcalls)
            if lgssd:
                # The rule's own configuration has to be lgssd's.
                text = upcalls.rule.path.read_text()
                upcalls.rule.path.write_text(text.replace(str(upcalls.config_file), str(config)))
            yield upcalls, cgroup
        cgroup.wait_empty(10)


def settle(cgroup: Cgroup) -> float:
    """The CPU seconds of ``cgroup`` once that stands still."""
    last = -1.0
    while (now := cgroup.cpu()) - last > 0.0005:
        last = now
        time.sleep(0.05)
    return now


def burst_of(bench: Bench, upcalls: Upcalls, uids: Sequence[int], each: int) -> list[Result]:
    """``each`` requests of each of ``uids``, all at once."""
    start = moment(0.5 + 0.002 * each * len(uids))
    return results(*(bench.ask(upcalls, uid, each, each, start) for uid in uids))


def cpu_of(
    bench: Bench, program: Path, lgssd: bool, uids: Sequence[int], each: int, at_once: int
) -> tuple[float, list[Result]]:
    """Milliseconds of CPU time of an upcall, and the results, for ``each`` requests of ``uids``."""
    with measured(bench, program, lgssd) as (upcalls, cgroup):
        for uid in uids:
            checked(results(bench.ask(upcalls, uid, 2)))
        before = settle(cgroup)
        start = moment(0.5)
        found = results(*(bench.ask(upcalls, uid, each, at_once, start) for uid in uids))
        return (settle(cgroup) - before) * 1000 / len(found), found


def times(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Milliseconds blocked by front, and to the answer, in turns."""
    bare = bench.folder / "bare.py"
    Stage.write_front(HERE / "bare.py", bare)
    programs: dict[str, tuple[Path, bool]] = {"bare Python": (bare, False)}
    c_program = build_c(bench.folder)
    if c_program is not None:
        programs["bare C"] = (c_program, False)
    programs["Python"] = (bench.site.stage.program, False)
    programs["Python, lgssd"] = (bench.site.stage.program, True)
    if bench.native is not None:
        programs["native"] = (bench.native, False)
        programs["native, lgssd"] = (bench.native, True)
    figures: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        with bench.site.upcalls(bench.settings) as first:
            config = first.config_file
        daemon = Lgssd(bench.site, config)
        stack.callback(daemon.close)
        rules = {}
        for name, (program, with_lgssd) in programs.items():
            socket = daemon.socket if with_lgssd else "/nonexistent/lgssd"
            upcalls = stack.enter_context(
                bench.site.upcalls(bench.settings, f"--lgssd {socket}", program=program)
            )
            text = upcalls.rule.path.read_text().replace(str(upcalls.config_file), str(config))
            if name.startswith("bare"):
                text = text.replace(f"--config {config} --lgssd {socket} ", "")
            upcalls.rule.path.write_text(text)
            rules[name] = upcalls
        for turn in range(-3, rounds):
            for name, upcalls in rules.items():
                is_bare = name.startswith("bare")
                # A bare handler gives the key no answer.
                (result,) = results(bench.ask(upcalls, bench.users[0], wait=0 if is_bare else WAIT))
                if not is_bare:
                    checked([result])
                if turn >= 0:
                    figures.setdefault(f"blocked: {name}", []).append(result.blocked * 1000)
                    if not is_bare:
                        figures.setdefault(f"updated: {name}", []).append(result.updated * 1000)
                time.sleep(0.02)
    return figures


def memory(bench: Bench, requests: int) -> dict[str, float]:
    """MiB (PSS) of lgssd idle, of each idle worker beside it, and by how many percent all of it has grown
    after ``requests`` upcalls; descriptors that are left."""
    with bench.site.upcalls(bench.settings) as first:
        config = first.config_file
    daemon = Lgssd(bench.site, config)
    try:
        idle = load.pss([daemon.process.pid])
        rule = bench.site.upcalls(bench.settings, f"--lgssd {daemon.socket}", program=bench.program)
        with rule as upcalls:
            text = upcalls.rule.path.read_text().replace(str(upcalls.config_file), str(config))
            upcalls.rule.path.write_text(text)
            for uid in bench.users:
                checked(results(bench.ask(upcalls, uid, 20)))
            pids = daemon.pids()
            before, workers = load.pss(pids), len(pids) - 1
            descriptors = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
            for _ in range(max(1, requests // (USERS * 50))):
                checked(burst_of(bench, upcalls, bench.users, 50))
            time.sleep(1)
            after = load.pss(daemon.pids())
            left = len(os.listdir(f"/proc/{daemon.process.pid}/fd")) - descriptors
        return {
            "lgssd_mib": idle / 2**20,
            "worker_mib": (before - idle) / 2**20 / max(workers, 1),
            "growth_percent": (after / before - 1) * 100,
            "descriptors_left": left,
        }
    finally:
        daemon.close()


def disturbed(bench: Bench, rounds: int) -> dict[str, float]:
    """Milliseconds more, of medians, that another user's request takes while one user storms."""
    with bench.site.upcalls(bench.settings) as first:
        config = first.config_file
    daemon = Lgssd(bench.site, config)
    try:
        options = f"--lgssd {daemon.socket}"
        with bench.site.upcalls(bench.settings, options, program=bench.program) as upcalls:
            text = upcalls.rule.path.read_text().replace(str(upcalls.config_file), str(config))
            upcalls.rule.path.write_text(text)
            quiet: list[float] = []
            stormed: list[float] = []
            for _ in range(rounds):
                found = checked(results(bench.ask(upcalls, bench.users[1], 10)))
                quiet += [each.updated * 1000 for each in found]
                with load.storm(upcalls, bench.users[0]):
                    time.sleep(0.5)
                    found = checked(results(bench.ask(upcalls, bench.users[1], 10)))
                    stormed += [each.updated * 1000 for each in found]
                time.sleep(1)
        return {"storm_more_ms": statistics.median(stormed) - statistics.median(quiet)}
    finally:
        daemon.close()


def killed(bench: Bench, count: int) -> dict[str, float]:
    """How many of ``count`` requests of all users fail while lgssd or a worker is killed each 100 ms."""
    with bench.site.upcalls(bench.settings) as first:
        config = first.config_file
    daemon = Lgssd(bench.site, config)
    try:
        options = f"--lgssd {daemon.socket}"
        with bench.site.upcalls(bench.settings, options, program=bench.program) as upcalls:
            text = upcalls.rule.path.read_text().replace(str(upcalls.config_file), str(config))
            upcalls.rule.path.write_text(text)
            processes = [bench.ask(upcalls, uid, count // USERS, 2) for uid in bench.users]
            turn = kills = 0
            while any(process.poll() is None for process in processes):
                time.sleep(0.1)
                pids = daemon.pids()
                if turn % 2 and len(pids) > 1:
                    os.kill(pids[1 + turn % (len(pids) - 1)], 9)
                else:
                    daemon.process.kill()
                    daemon.process.wait()
                    daemon.start()
                turn += 1
                kills += 1
            found = results(*processes)
        return {
            "killed_requests": len(found),
            "kills": kills,
            "killed_failed": sum(each.failed for each in found),
            "killed_slowest_s": max(each.updated for each in found),
        }
    finally:
        daemon.close()


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep every figure in this file.")
@click.option("--rounds", default=50, show_default=True, type=click.IntRange(2), help="Interleaved rounds.")
@click.option("--requests", default=5000, show_default=True, help="Upcalls after which memory is compared.")
@click.option("--only", default="", help="Only these parts, with commas: times, cpu, memory, storm, kill.")
def main(json_file: Path | None, rounds: int, requests: int, only: str) -> None:
    """Measure upcalls with lgssd and without on this machine's kernel; needs root."""
    for line in runs.remove_dead():
        click.echo(line, err=True)
    runs.begin()
    parts = set(only.split(",")) if only else {"times", "cpu", "memory", "storm", "kill"}
    figures: dict[str, Any] = {}
    samples: dict[str, list[float]] = {}
    with Site() as site:
        bench = Bench(site)
        if "times" in parts:
            samples = times(bench, rounds)
            click.echo(f"{'':34} {'median':>9} {'q1':>9} {'q3':>9} {'min':>9} {'max':>9}")
            for name, values in samples.items():
                click.echo(row(name, values, "ms"))
                figures[name] = statistics.median(values)
        if "cpu" in parts:
            front = bench.program
            one, _ = cpu_of(bench, front, True, bench.users[:1], BURST, 50)
            many, burst = cpu_of(bench, front, True, bench.users, BURST // USERS, BURST // USERS)
            machine, _ = cpu_of(bench, front, True, [0], BURST, 50)
            alone, _ = cpu_of(bench, front, False, bench.users[:1], 50, 1)
            figures |= {"cpu_ms": one, "cpu_users_ms": many, "cpu_machine_ms": machine, "cpu_alone_ms": alone}
            figures["burst_s"] = max(each.updated for each in burst)
            figures["burst_failed"] = sum(each.failed for each in burst)
        if "memory" in parts:
            figures |= memory(bench, requests)
        if "storm" in parts:
            figures |= disturbed(bench, 3)
        if "kill" in parts:
            figures |= killed(bench, 2000)
    for name, value in figures.items():
        if ":" not in name:
            click.echo(f"{name:34} {value:9.2f}")
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({"medians": figures, "samples": samples}, indent=1))


if __name__ == "__main__":
    main()
