"""Make small mistakes in the package, one at a time, and say which of them no test notices.

usage: python -m tests.mutants [-n N] [--seed SEED] [--minutes M] [MODULE ...]
       python -m tests.mutants --again

A MODULE is a module or folder of lgss_keyring, such as `monitor` or `front/main.py`; none: all of them.
The changed module is never the checkout's: each of two places has a copy in /var/lib.  As root, like
`make check`.  What was found is also written to build/mutants.json; --again tries the survivors that
are there, with all tests of their modules.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support import runs

from .judging import Judged, Judging, TestsFailError
from .pool import Pool
from .sample import Mutant, again, draw, modules
from .trial import Copy, remove_dead

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "mutants.json"
MINUTES_EACH = 0.15
"""200 mutants have 30 minutes."""
ENOUGH = 60


def main(arguments: list[str]) -> int:
    """0 if the measurement came to its end, whatever it found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("-n", type=int, default=200, help="how many (200)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float, help="what it may take (0.15 for each mutant)")
    parser.add_argument("--places", type=int, default=2, help="how many at once (2)")
    parser.add_argument(
        "--turn", type=Path, action="append", default=[], help="a file to lock for integration tests"
    )
    parser.add_argument(
        "--leave-out", action="store_true", help="go on without tests that fail without a change"
    )
    parser.add_argument("--again", action="store_true", help="the survivors of the last measurement")
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("the integration tests need root: they install request-key rules and change ids")
    try:
        drawn = (
            survivors()
            if options.again
            else draw(ROOT, modules(ROOT, options.modules), options.n, options.seed)
        )
    except ValueError as error:
        parser.error(str(error))
    say(f"{len(drawn)} mutants" + ("" if options.again else f", SEED={options.seed}"))
    runs.begin()
    remove_dead()
    begun = time.monotonic()
    minutes = options.minutes or (ENOUGH if options.again else MINUTES_EACH) * len(drawn)
    judging = Judging(ROOT, drawn, 60 * minutes, options.places, say, options.leave_out)
    pool = Pool(options.turn)
    status = 0
    try:
        for _ in range(options.places):
            pool.add(Copy(ROOT))
        pool.work(judging.tasks())
    except TestsFailError as error:
        status = 1
        say(f"tests fail without any change:\n{error}")
    except KeyboardInterrupt:
        status = 130
    finally:
        # What is removed now is not left half there.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        pool.close()
    report(judging.judged, options.seed, time.monotonic() - begun)
    return status


def survivors() -> list[Mutant]:
    """Those of the last measurement whose lines are still there.  ValueError: there was none."""
    if not KEPT.exists():
        raise ValueError("there is no build/mutants.json; it is written by a measurement")
    records = [
        each["mutant"] for each in json.loads(KEPT.read_text())["mutants"] if each["result"] == "survived"
    ]
    return again(ROOT, records)


def say(text: str) -> None:
    """A line, at once: it takes half an hour."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def report(judged: list[Judged], seed: int, seconds: float) -> None:
    """Print the survivors, and write all to build/mutants.json."""
    done = [each for each in judged if each.is_done]
    left = [each for each in done if not each.noticed_by]
    for each in left:
        print(f"\n{each.mutant}\n{each.diff}\nnot noticed by {' '.join(each.tests)}")
    if done:
        share = 100 * (len(done) - len(left)) / len(done)
        print(f"\n{len(done) - len(left)} of {len(done)} mutants noticed, {share:.1f} %; SEED={seed}")
    if len(done) < len(judged):
        print(f"{len(judged) - len(done)} were not judged")
    flaky = sorted({test for each in judged for test in each.flaky})
    print(*(f"failed once, passed the next time: {test}" for test in flaky), sep="\n")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(
        json.dumps(
            {
                "commit": commit,
                "seed": seed,
                "seconds": round(seconds),
                "mutants": [
                    {
                        "mutant": each.record,
                        "diff": each.diff,
                        "result": _result(each),
                        "noticed_by": each.noticed_by,
                        "not_noticed_by": each.tests,
                        "failed_once": each.flaky,
                        "seconds": round(each.seconds, 1),
                    }
                    for each in judged
                ],
            },
            indent=1,
        )
    )
    say(f"written to {KEPT.relative_to(ROOT)}")


def _result(each: Judged) -> str:
    if not each.is_done:
        return "not judged"
    return "noticed" if each.noticed_by else "survived"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
