"""What upcalls cost with lgssd and without, by both fronts.

The cases are measured in turns, so that whatever else the machine does meets all of them.  Every process
counts, from the front that /sbin/request-key starts to the worker, and nothing is subtracted.  What
/sbin/request-key itself and the kernel take is not counted as CPU time, but is in all the other times.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from bench.bench_upcall import build_c, row
from bench.requests import (
    BURST,
    HERE,
    USERS,
    WAIT,
    Bench,
    Result,
    checked,
    compile_c,
    moment,
    results,
    wait_for_quota,
)
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
        if lgssd:
            with bench.served(wrapper, cgroup) as (upcalls, _):
                yield upcalls, cgroup
        else:
            options = "--lgssd /nonexistent/lgssd"
            with bench.site.upcalls(bench.settings, options, program=wrapper) as upcalls:
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
        wait_for_quota([uid for uid in uids if uid])
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
        rules = {}
        for name, (program, with_lgssd) in programs.items():
            if with_lgssd:
                rules[name], _ = stack.enter_context(bench.served(program))
                continue
            options = "--lgssd /nonexistent/lgssd"
            upcalls = rules[name] = stack.enter_context(
                bench.site.upcalls(bench.settings, options, program=program)
            )
            if name.startswith("bare"):  # these know no options
                text = upcalls.rule.path.read_text()
                upcalls.rule.path.write_text(text.replace(f"--config {upcalls.config_file} {options} ", ""))
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
    with bench.served(bench.program) as (upcalls, daemon):
        idle = load.pss([daemon.process.pid])
        for uid in bench.users:
            checked(results(bench.ask(upcalls, uid, 20)))
        pids = daemon.pids()
        before, workers = load.pss(pids), len(pids) - 1
        descriptors = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        for _ in range(max(1, requests // (USERS * 50))):
            wait_for_quota(bench.users)
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


def disturbed(bench: Bench, rounds: int) -> dict[str, float]:
    """Milliseconds more, of medians, that another user's request takes while one user storms."""
    quiet: list[float] = []
    stormed: list[float] = []
    with bench.served(bench.program) as (upcalls, _):
        for _ in range(rounds):
            found = checked(results(bench.ask(upcalls, bench.users[1], 10)))
            quiet += [each.updated * 1000 for each in found]
            with load.storm(upcalls, bench.users[0]):
                time.sleep(0.5)
                found = checked(results(bench.ask(upcalls, bench.users[1], 10)))
                stormed += [each.updated * 1000 for each in found]
            time.sleep(1)
    return {"storm_more_ms": statistics.median(stormed) - statistics.median(quiet)}


def killed(bench: Bench, count: int) -> dict[str, float]:
    """How many of ``count`` requests of all users fail while lgssd or a worker is killed each 100 ms."""
    with bench.served(bench.program) as (upcalls, daemon):
        processes = [bench.ask(upcalls, uid, count // USERS, 2) for uid in bench.users]
        turn = 0
        while any(process.poll() is None for process in processes):
            time.sleep(0.1)
            pids = daemon.pids()
            if turn % 2 and len(pids) > 1:
                os.kill(pids[1 + turn % (len(pids) - 1)], signal.SIGKILL)
            else:
                daemon.process.kill()
                daemon.process.wait()
                daemon.start()
            turn += 1
        found = results(*processes)
    return {
        "killed_requests": len(found),
        "kills": turn,
        "killed_failed": sum(each.failed for each in found),
        "killed_slowest_s": max(each.updated for each in found),
    }


AT_ONCE = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def growth(bench: Bench) -> dict[int, tuple[float, float]]:
    """Milliseconds blocked and to the answer, medians, by the number of requests at once."""
    found = {}
    with bench.served(bench.program) as (upcalls, _), load.quota(8 * BURST):
        for number in AT_ONCE:
            uids = bench.users[: min(USERS, number)]
            wait_for_quota(bench.users)
            answers = checked(burst_of(bench, upcalls, uids, number // len(uids)))
            blocked, updated = (
                [getattr(each, name) * 1000 for each in answers] for name in ("blocked", "updated")
            )
            found[number] = statistics.median(blocked), statistics.median(updated)
    return found


def draw(found: dict[int, tuple[float, float]], picture: Path) -> None:
    """Draw what :func:`growth` has found."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, index in (("blocked", 0), ("updated", 1)):
        axes.plot(list(found), [values[index] for values in found.values()], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="requests at once", ylabel="ms (median)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


PARTS: dict[str, Callable[[Bench, int, int], dict[str, float]]] = {
    "cpu": lambda bench, rounds, requests: cpu(bench),
    "memory": lambda bench, rounds, requests: memory(bench, requests),
    "storm": lambda bench, rounds, requests: disturbed(bench, 3),
    "kill": lambda bench, rounds, requests: killed(bench, 2000),
}


def cpu(bench: Bench) -> dict[str, float]:
    """Milliseconds of CPU time of an upcall, and how a burst of all users goes."""
    with load.quota(8 * BURST):
        one, found = cpu_of(bench, bench.program, True, bench.users[:1], BURST, 50)
    checked(found)
    many, burst = cpu_of(bench, bench.program, True, bench.users, BURST // USERS, BURST // USERS)
    machine, found = cpu_of(bench, bench.program, True, [0], BURST, 50)
    checked(found)
    alone, found = cpu_of(bench, bench.program, False, bench.users[:1], 50, 1)
    checked(found)
    return {
        "cpu_ms": one,
        "cpu_users_ms": many,
        "cpu_machine_ms": machine,
        "cpu_alone_ms": alone,
        "burst_s": max(each.updated for each in burst),
        "burst_failed": sum(each.failed for each in burst),
    }


def summary(figures: dict[str, float]) -> str:
    """The bench's last line."""

    def ratio(name: str, to: str) -> float | None:
        return figures[name] / figures[to] if name in figures and to in figures else None

    shown = {
        "word_vs_c": ratio("blocked: native, lgssd", "blocked: bare C"),
        "native_vs_c": ratio("blocked: native", "blocked: bare C"),
        "python_vs_bare": ratio("blocked: Python", "blocked: bare Python"),
        "updated_ms": figures.get("updated: native, lgssd", figures.get("updated: Python, lgssd")),
    }
    shown |= {name: figures.get(name) for name in ("cpu_ms", "cpu_machine_ms", "burst_s", "burst_failed")}
    texts = [f"{name}={'none' if value is None else f'{value:.2f}'}" for name, value in shown.items()]
    return f"bench-fast: {' '.join(texts)}"


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep every figure in this file.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw 1 to 500 requests at once.")
@click.option("--rounds", default=50, show_default=True, type=click.IntRange(2), help="Interleaved rounds.")
@click.option("--requests", default=5000, show_default=True, help="Upcalls after which memory is compared.")
@click.option("--only", default="times,cpu,memory,storm,kill", show_default=True, help="These parts alone.")
def main(json_file: Path | None, picture: Path | None, rounds: int, requests: int, only: str) -> None:
    """Measure upcalls with lgssd and without on this machine's kernel; needs root."""
    for line in runs.remove_dead():
        click.echo(line, err=True)
    runs.begin()
    figures: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    with Site() as site:
        bench = Bench(site)
        if "times" in only:
            samples = times(bench, rounds)
            click.echo(f"{'':34} {'median':>9} {'q1':>9} {'q3':>9} {'min':>9} {'max':>9}")
            for name, values in samples.items():
                click.echo(row(name, values, "ms"))
                figures[name] = statistics.median(values)
        for part, measure in PARTS.items():
            if part in only:
                found = measure(bench, rounds, requests)
                figures |= found
                for name, value in found.items():
                    click.echo(f"{name:34} {value:9.2f}")
        if picture is not None:
            draw(growth(bench), picture)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({"medians": figures, "samples": samples}, indent=1))
    click.echo(summary(figures))


if __name__ == "__main__":
    main()
