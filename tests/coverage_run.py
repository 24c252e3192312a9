"""Run the tests and print which lines of the package none of them reaches: `make coverage`.

usage: python -m tests.coverage_run [PYTEST'S ARGUMENTS]

Measured are pytest, what it forks, what it starts (tests/measured/sitecustomize.py), and the
upcalls: request-key(8) passes them no environment of ours, so a stage's front starts the
measurement itself (tests/support/stage.py). Workers write as their users, hence a folder that all
may write to. Not measured: processes that are killed, and the code of containers' own mounts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = """\
[run]
parallel = true
data_file = {data}
source =
    {root}/lgss_keyring
patch = _exit
sigterm = true
disable_warnings = no-data-collected, module-not-measured, module-not-imported, couldnt-parse

[report]
show_missing = true
skip_covered = true
exclude_also =
    if TYPE_CHECKING:
    if __name__ == .__main__.:
    : \\.\\.\\.$
"""


def main() -> int:
    """Pytest's exit status."""
    kept = ROOT / "build" / "coverage"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lgss-coverage-") as name:
        folder = Path(name)
        folder.chmod(0o1777)
        settings = folder / "settings"
        settings.write_text(SETTINGS.format(data=folder / "data", root=ROOT))
        settings.chmod(0o644)
        coverage = [sys.executable, "-m", "coverage"]
        environment = {
            **os.environ,
            "COVERAGE_PROCESS_START": str(settings),
            "PYTHONPATH": os.pathsep.join((str(ROOT / "tests" / "measured"), str(ROOT))),
        }
        tests = sys.argv[1:] or ["tests/unit", "tests/integration"]
        # The start by sitecustomize measures pytest, too.
        status = subprocess.run(
            [sys.executable, "-m", "pytest", *tests], cwd=ROOT, env=environment
        ).returncode
        option = f"--rcfile={settings}"
        subprocess.run([*coverage, "combine", "-q", option], cwd=ROOT, check=True)
        with (kept / "report").open("w") as report:
            subprocess.run([*coverage, "report", option], cwd=ROOT, check=True, stdout=report)
        shutil.copy(folder / "data", kept / "data")
    print((kept / "report").read_text(), end="")
    return status


if __name__ == "__main__":
    sys.exit(main())
