"""What the tests inside the virtual machine share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The tests import `testmod` from this directory, whatever import mode is set.
sys.path.insert(0, str(Path(__file__).parent))

from handlers import description as description
from handlers import handler as handler
from handlers import parameter as parameter
from handlers import rule as rule
from lustre import nothing_left as nothing_left
from lustre import patient_rule as patient_rule
from lustre import server as server
from lustre import ticket as ticket


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known to a pytest that was started without the project's file."""
    config.addinivalue_line("markers", "vm: also, or only, run inside the throw-away virtual machine")


@pytest.fixture(scope="session", autouse=True)
def inside_vm() -> None:
    """Refuse to run anywhere else: these tests load a module and change /etc."""
    if not Path("/opt/lgss-vm").is_dir():
        pytest.fail("these tests run inside the virtual machine: make vm-check", pytrace=False)


@pytest.fixture(scope="session")
def testmod_loaded(inside_vm: None) -> Iterator[None]:
    """Load the kernel test module; at the end it must unload, and have caused no complaint."""
    subprocess.run(["dmesg", "--clear"], check=True)
    subprocess.run(["modprobe", "lgss_testmod"], check=True)
    yield
    unload = subprocess.run(["rmmod", "lgss_testmod"], capture_output=True, text=True)
    log = subprocess.check_output(["dmesg"], text=True)
    assert unload.returncode == 0, unload.stderr
    for complaint in ("BUG:", "WARNING:", "blocked for more than", "refcount_t", "Call Trace"):
        assert complaint not in log, log
