"""What the tests of credentials share."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.site import Site, Upcalls

from .answers import established

# Not in the virtual machine: tests/vm/test_lustre.py has these cases for type lgssc there.

REALM = "LGSS.TEST"


def initiator(upcalls: Upcalls, answer: Any) -> str:
    established(answer)
    (event,) = [e for e in upcalls.events(answer.key) if e.get("LGSS_STEP") == "updated"]
    return event["LGSS_INITIATOR"].removesuffix(f"@{REALM}")


def messages(upcalls: Upcalls) -> str:
    return "\n".join(event["message"] for event in upcalls.log())


@pytest.fixture
def keytab(site: Site, tmp_path: Path) -> Callable[..., Path]:
    """Make a keytab of these principals, in this order."""

    def make(*principals: str) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.keytab"
        for principal in principals:
            site.realm.add_principal(principal)
            site.realm.extract_keytab(path, principal)
        return path

    return make


@pytest.fixture
def root_cache(site: Site) -> Iterator[Path]:
    """The file of root's default cache, not there yet."""
    path = site.realm.ccache_of(0)
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


def kinit(site: Site, keytab: Path, principal: str, cache: Path | str, *options: str) -> None:
    command = ["kinit", "-k", "-t", str(keytab), "-c", str(cache), *options, principal]
    subprocess.run(command, env={**os.environ, **site.realm.env}, check=True, capture_output=True)


def issued(site: Site, request: str, client: str = "lustre_root") -> int:
    """How many tickets the KDC has issued to ``client`` by ``request``: AS_REQ or TGS_REQ."""
    log = (site.realm.directory / "kdc.log").read_text()
    return sum(request in line and "ISSUE" in line and client in line for line in log.splitlines())


def with_default_cache(site: Site, name: str) -> dict[str, dict[str, str]]:
    """Settings whose krb5.conf has another default_ccache_name."""
    config = site.directory / f"krb5-{time.monotonic_ns()}.conf"
    lines = Path(site.realm.krb5_conf).read_text().splitlines()
    lines = [line for line in lines if "default_ccache_name" not in line]
    at = lines.index("[libdefaults]") + 1
    config.write_text("\n".join([*lines[:at], f"  default_ccache_name = {name}", *lines[at:]]))
    config.chmod(0o644)
    return {"krb5": {"config": str(config)}}


@pytest.fixture
def private(site: Site) -> Iterator[Path]:
    """The folder of the machine's own tickets, empty."""
    folder = site.directory / "machine"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def contents(folder: Path) -> dict[str, bytes]:
    """The files in ``folder`` and below, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
