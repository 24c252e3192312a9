"""The front in C, without a key: random input for its parsers, what checkers say, and how it is built."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import native

NATIVE = Path(__file__).parents[2] / "native"
LINES = 400
SECONDS = 5

pytestmark = pytest.mark.skipif(not native.has_compiler(), reason="no C compiler here")


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-sC", NATIVE, *words], capture_output=True, text=True, timeout=120)


def test_the_program_is_short() -> None:
    assert (NATIVE / "lgss_keyring.c").read_text().count("\n") <= LINES


@pytest.mark.skipif(not shutil.which("cppcheck") or not shutil.which("gcc"), reason="no cppcheck, or no gcc")
def test_checkers_find_nothing() -> None:
    done = make("lint")
    assert not done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc")
def test_random_arguments_and_messages(tmp_path: Path) -> None:
    if make(f"BUILD={tmp_path}", f"{tmp_path}/fuzz").returncode:
        pytest.skip("there is no AddressSanitizer here")
    done = make(f"BUILD={tmp_path}", "fuzz", f"SECONDS={SECONDS}")
    assert not done.returncode, done.stdout + done.stderr
    assert int(done.stdout.split(" inputs, no defect")[0].split()[-1]) > 10_000


def test_it_is_linked_statically_where_it_can_be_and_hardened() -> None:
    program = native.build()
    if not shutil.which("readelf"):
        pytest.skip("no readelf")
    text = subprocess.run(["readelf", "-hldW", program], capture_output=True, text=True, check=True).stdout
    assert "GNU_RELRO" in text and "DYN" in text
    assert "GNU_STACK" in text and " RWE " not in text
    if shutil.which("musl-gcc"):
        assert "INTERP" not in text
        assert program.stat().st_size < 100_000
