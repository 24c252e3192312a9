"""Which tests are about a line of the package, and in what order they are tried.

Unit tests: those that reach the line in pytest's own process, the quickest first; then the others of
their files, and those of files that name the module, since what a test forks is not measured.

Integration tests: by the table below, because what runs in an upcall's processes is measured only at
great expense.  A row's files are for the modules whose paths begin with its name.  A file in no row is
for every module, after the others, so a new one need not be entered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

INTEGRATION: dict[str, str] = {
    "cli/": "by_hand examples upcall",
    "daemon/": "lgssd lgssd_peers lgssd_shares pipe_policy",
    "formats/": "upcall faults_of_requests known_failures sptlrpc lgssd",
    "formats/config": "faults_of_requests",
    "formats/crypto/": "sptlrpc_messages sptlrpc interop",
    "formats/errors": "faults_of_services faults_of_caches faults_of_krb5_conf",
    "formats/nid": "faults_of_requests",
    "formats/hosts_table": "faults_of_requests",
    "formats/outcome": "faults_of_services",
    "formats/worker_messages": "upcall_processes",
    "front/": "upcall upcall_processes faults_of_upcalls faults_of_requests word known_failures kills",
    "front/fuse": "attacks_users credentials_of_users",
    "front/known_failure": "known_failures",
    "front/pace": "turns",
    "front/requestor_place": "namespaces attacks_containers keyring_attack attacks_users",
    "front/refusal": "faults_of_requests faults_of_upcalls",
    "front/witness": "kills upcall_processes",
    "front/word": "word credentials_of_the_machine",
    "monitor/": "upcall upcall_processes faults_of_upcalls faults_of_services kills shortages lgssd",
    "monitor/failures": "known_failures word",
    "monitor/hand_over": "turns",
    "monitor/init_channel": "upcall_processes",
    "monitor/priority": "turns",
    "monitor/queue_keeper": "turns",
    "monitor/service": "upcall attacks_users credentials_of_the_machine",
    "monitor/slots": "turns",
    "monitor/turn": "turns",
    "sptlrpc/": "sptlrpc sptlrpc_keys sptlrpc_messages pipe_policy sptlrpc_example",
    "sptlrpc/keyring": "sptlrpc_keys sptlrpc",
    "sptlrpc/pipe": "pipe_policy",
    "system/": "upcall upcall_processes sptlrpc attacks_users namespaces lgssd",
    "system/line_limit": "log_of_a_user",
    "system/log": "log_of_a_user faults_of_requests",
    "worker/": "upcall credentials_of_users credentials_of_the_machine faults_of_services attacks_users",
    "worker/channel/": "faults_of_services interop",
    "worker/confinement": "confinement namespaces attacks_containers",
    "worker/creds/": "faults_of_caches credentials_of_users attacks_machine",
    "worker/creds/cache_owner": "faults_of_caches attacks_users",
    "worker/creds/machine": "credentials_of_the_machine tickets_of_the_machine attacks_machine",
    "worker/creds/principals": "credentials_of_the_machine",
    "worker/creds/service_tickets": "tickets_of_the_machine attacks_machine",
    "worker/creds/ticket_file": "tickets_of_the_machine attacks_machine",
    "worker/exiting": "exiting",
    "worker/identity": "attacks_users upcall_processes tracing namespaces",
    "worker/krb5_conf": "faults_of_krb5_conf",
    "worker/monitor_connection": "attacks_containers upcall_processes attacks_users",
    "worker/names": "faults_of_requests",
    "worker/namespaces": "namespaces attacks_containers exiting",
    "worker/sightings": "faults_of_services known_failures",
    "worker/work": "upcall namespaces credentials_of_users attacks_containers",
}
NOT_ABOUT_THE_PACKAGE = "acceptor dead_runs demo install install_files realm"
"""They are about the tests' own tools, or take minutes and would notice little that others do not."""


def integration(path: str, there: Iterable[str]) -> list[str]:
    """The files of integration tests for the module ``path`` (``lgss_keyring/...``), those of the
    closest row first.  ``there`` has the names of all such files (``test_upcall.py``)."""
    names = {name.removeprefix("test_").removesuffix(".py") for name in there}
    module = path.removeprefix("lgss_keyring/")
    rows = sorted((row for row in INTEGRATION if module.startswith(row)), key=len, reverse=True)
    wanted = [name for row in rows for name in INTEGRATION[row].split()]
    entered = {name for row in INTEGRATION.values() for name in row.split()}
    wanted += sorted(names - entered - set(NOT_ABOUT_THE_PACKAGE.split()))
    return [f"tests/integration/test_{name}.py" for name in dict.fromkeys(wanted) if name in names]


def unit(
    path: str,
    line: int,
    seconds: Mapping[str, float],
    reached: Mapping[str, Mapping[str, list[str]]],
    root: Path,
) -> list[str]:
    """The unit tests for a line, in their order.  ``seconds`` has all tests with what each takes,
    ``reached`` the tests by file and line.

    A file names a module by its last name, or by that of its folder as a package: tests that run a whole
    program in processes of its own do.
    """
    reach = set(reached.get(path, {}).get(str(line), []))
    package = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    names = re.compile(rf"\b{package.rpartition('.')[2]}\b|{re.escape(package.rpartition('.')[0])}\b(?!\.)")
    close = {_file(test) for test in reach}
    close |= {
        str(file.relative_to(root))
        for file in (root / "tests" / "unit").glob("test_*.py")
        if names.search(file.read_text())
    }
    tests = [test for test in seconds if _file(test) in close]
    return sorted(tests, key=lambda test: (test not in reach, seconds[test]))


def affordable(files: list[str], seconds: Mapping[str, float], budget: float) -> list[str]:
    """Those of ``files`` that together take no more than ``budget`` by the ``seconds`` of their tests,
    the first of them first; at least one, and none that has no tests."""
    chosen: list[str] = []
    total = 0.0
    for file in files:
        cost = sum(taken for test, taken in seconds.items() if _file(test) == file)
        if cost and (not chosen or total + cost <= budget):
            chosen.append(file)
            total += cost
    return chosen


def _file(test: str) -> str:
    return test.partition("::")[0]
