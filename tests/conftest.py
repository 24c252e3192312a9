"""For every test: programs that a test starts import this checkout, whatever is installed."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = str(Path(__file__).parents[1])

# The front ignores it (python -I): a stage has the package beside it instead.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (CHECKOUT, os.environ.get("PYTHONPATH"))))
