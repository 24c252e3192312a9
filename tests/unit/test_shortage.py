"""A machine that is short of something is told from a defect of ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lgss_keyring.formats import errors

LOAD_WITHOUT_MEMORY = """
import ctypes, resource, sys
from lgss_keyring.formats.outcome import Failed
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 300_000,) * 2)
try:
    {statement}
except (ImportError, OSError) as error:
    failed = Failed.by(error)
    print(type(error).__name__, getattr(error, "errno", None), failed.kind, failed.reason)
"""


@pytest.mark.parametrize(
    ("statement", "type_name"),
    [
        ("import cryptography.hazmat.bindings._rust", "ImportError"),
        ('ctypes.CDLL("libkrb5.so.3")', "OSError"),
    ],
)
def test_a_library_that_finds_no_memory_is_a_shortage(statement: str, type_name: str) -> None:
    """The loader's errors have no errno, only a text."""
    command = [sys.executable, "-c", LOAD_WITHOUT_MEMORY.format(statement=statement)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.stdout.startswith(f"{type_name} None resources this machine is short of something:"), done


def test_a_library_that_is_not_there_is_none() -> None:
    assert errors.shortage(ImportError("libkrb5.so.3: cannot open shared object file: No such file")) == 0
    assert errors.shortage(OSError("libkrb5.so.3: wrong ELF class: ELFCLASS32")) == 0
