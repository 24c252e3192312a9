"""What the machines of a site cost a KDC: exchanges, by the KDC's own log, and its CPU time for each.

docs/scale.md has the figures and what follows from them.  The KDC is MIT's krb5kdc, one process, with its
database on this machine's disk; the clients are in this process, so they never keep it waiting.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import click

from lgss_keyring.formats.callout import parse_request
from lgss_keyring.formats.config import Config, Krb5
from lgss_keyring.worker import krb5_library
from lgss_keyring.worker.creds import machine
from lgss_keyring.worker.creds.renewal import KeptTickets
from lgss_keyring.worker.mech import krb5
from tests.support.realm import Realm
from tests.support.site import machine_callout

PRINCIPAL = "host/node.lgss.test"
NODES = ((1, 1), (8, 2), (40, 10), (160, 40))
"""Targets, and the hosts that have them."""
CLIENT_LIFE = 36_000.0
UPCALL_SHARE, MARGIN = 0.25, 1800.0
"""Of lgss_keyring.worker.creds.renewal: a quarter of the time to half an hour before the end."""
PING_SECONDS = 25.0
"""A Lustre client sends something to each server at least so often (obd_timeout / 4)."""


class Bench:
    """A realm and a node."""

    def __init__(self, realm: Realm) -> None:
        self._realm = realm
        self._keytab = realm.directory / "node.keytab"
        realm.add_principal(PRINCIPAL)
        realm.extract_keytab(self._keytab, PRINCIPAL)
        os.environ["KRB5_CONFIG"] = str(realm.krb5_conf)

    def requests(self) -> tuple[int, int]:
        """How many AS and TGS requests the KDC has logged."""
        lines = (self._realm.directory / "kdc.log").read_text().splitlines()
        return sum("AS_REQ" in line for line in lines), sum("TGS_REQ" in line for line in lines)

    def settings(self, folder: str) -> Config:
        """Of a node that keeps its tickets in ``folder``."""
        directory = str(self._realm.directory / folder)
        config = str(self._realm.krb5_conf)
        return Config(krb5=Krb5(config=config, keytab=str(self._keytab), ccache_directory=directory))

    def mount(self, settings: Config, targets: int, hosts: int) -> None:
        """What the upcalls of a mount ask the KDC for."""
        arguments = ["create", "1", "lgssc", "x", machine_callout(self_nid=0), "0", "0", "0", "0", "0"]
        settings = Config(**{**settings.__dict__, "hosts": {os.uname().nodename: "node.lgss.test"}})
        for target in range(targets):
            host = f"server{target % hosts}.lgss.test"
            self._realm.add_principal(f"lustre_oss/{host}")
            service = f"lustre_oss@{host}"
            krb5.initiator(parse_request(arguments), settings, service, lambda *_: None, set()).step(None)

    def renew(self, settings: Config) -> None:
        """What a renewal asks it for."""
        tickets = KeptTickets(settings.krb5, "", 0.0, lambda *_: None)
        (due,) = tickets.due(time.time())
        tickets.renew(due, time.monotonic() + 60)

    def cpu(self) -> float:
        """Seconds of CPU that the KDC has used."""
        assert self._realm._kdc is not None
        return int(Path(f"/proc/{self._realm._kdc.pid}/schedstat").read_text().split()[0]) / 1e9

    def as_exchange(self) -> krb5_library.Creds:
        """A TGT."""
        context = krb5_library.new_context()
        keytab = krb5_library.kt_resolve(context, str(self._keytab).encode())
        return machine.tgt_from_kdc(
            context, keytab, krb5_library.parse_name_flags(context, PRINCIPAL.encode())
        )

    def costs(self, number: int) -> dict[str, tuple[float, float, float]]:
        """For each exchange its requests, and the milliseconds of the KDC's CPU and of a client that
        waits."""
        found = {}
        for name, flag in (("AS", "-"), ("AS, pre-authentication", "+")):
            self._realm.administer("modprinc", f"{flag}requires_preauth", PRINCIPAL)
            found[name] = self._timed(number, lambda: self.as_exchange())
        tickets = KeptTickets(self.settings("costs").krb5, "", 0.0, lambda *_: None)
        tgt = self.as_exchange()
        origin = ("keytab", str(self._keytab), f"{PRINCIPAL}@{self._realm.name}")
        found["TGS"] = self._timed(
            number, lambda: tickets._renew_service(origin, "lustre_oss@server0.lgss.test", tgt)
        )
        return found

    def _timed(self, number: int, exchange: Callable[[], object]) -> tuple[float, float, float]:
        exchange()
        requests, cpu, started = sum(self.requests()), self.cpu(), time.monotonic()
        for _ in range(number):
            exchange()
        cpu, elapsed = self.cpu() - cpu, time.monotonic() - started
        return (sum(self.requests()) - requests) / number, cpu / number * 1000, elapsed / number * 1000


def rates(nodes: int, hosts: int, boot_seconds: float) -> list[tuple[str, float, float]]:
    """AS and TGS exchanges in a second: for the boot, and for each later life of the tickets."""
    spread = (CLIENT_LIFE - MARGIN) * UPCALL_SHARE
    cases = (
        (f"a boot, within {boot_seconds:.0f} s", boot_seconds),
        ("not renewed, mounted at once", PING_SECONDS),
        ("renewed", spread),
    )
    return [(name, nodes / seconds, nodes * hosts / seconds) for name, seconds in cases]


@click.command()
@click.option("--exchanges", default=500, show_default=True, type=click.IntRange(10), help="Timed, of each.")
@click.option("--nodes", default=10_000, show_default=True, type=click.IntRange(1), help="Of the site.")
@click.option("--hosts", default=10, show_default=True, type=click.IntRange(1), help="Servers of a node.")
@click.option("--boot", default=300.0, show_default=True, type=click.FloatRange(1), help="Seconds.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the figures there, too.")
def main(exchanges: int, nodes: int, hosts: int, boot: float, path: Path | None) -> None:
    """Count and measure with a throw-away realm; needs root."""
    with Realm() as realm:
        bench = Bench(realm)
        click.echo(f"{'requests in the KDC log':34} {'AS':>6} {'TGS':>6}")
        counted = []
        for targets, servers in NODES:
            settings = bench.settings(f"node-{servers}")
            for what, renews in (("mount", False), ("mount again", False), ("renewal", True)):
                before = bench.requests()
                if renews:
                    time.sleep(1.1)  # the times of tickets are whole seconds
                    bench.renew(settings)
                else:
                    bench.mount(settings, targets, servers)
                after = bench.requests()
                name = f"{what}: {targets} targets, {servers} hosts"
                row = (name, after[0] - before[0], after[1] - before[1])
                counted.append(row)
                click.echo(f"{row[0]:34} {row[1]:6} {row[2]:6}")
        costs = bench.costs(exchanges)
    click.echo(f"{'an exchange':34} {'requests':>8} {'KDC CPU':>10} {'elapsed':>10} {'a core serves':>16}")
    for name, (requests, cpu, elapsed) in costs.items():
        click.echo(f"{name:34} {requests:8.0f} {cpu:7.3f} ms {elapsed:7.3f} ms {1000 / cpu:11.0f} /s")
    heading = f"{nodes} nodes, {hosts} hosts"
    click.echo(f"{heading:34} {'AS/s':>10} {'TGS/s':>10} {'KDC cores':>12}")
    for name, authentications, services in rates(nodes, hosts, boot):
        cores = (authentications * costs["AS, pre-authentication"][1] + services * costs["TGS"][1]) / 1000
        click.echo(f"{name:34} {authentications:10.1f} {services:10.1f} {cores:12.2f}")
    if path:
        path.write_text(json.dumps({"requests": counted, "ms": costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
