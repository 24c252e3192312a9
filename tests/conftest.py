"""For every test: programs that a test starts import this checkout, whatever is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# What the tests' files share has assertions, too; the last two are in tests/vm.
SHARED = ("answers", "credentials", "failures", "lgssd_process", "library")
pytest.register_assert_rewrite(*(f"tests.integration.{name}" for name in SHARED), "tests.unit.workers")
pytest.register_assert_rewrite("handlers", "lustre")

CHECKOUT = str(Path(__file__).parents[1])

# The front ignores it (python -I): a stage has the package beside it instead.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (CHECKOUT, os.environ.get("PYTHONPATH"))))
