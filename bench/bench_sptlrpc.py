"""What the library costs: a warm look-up, a signature, a seal.

The seal is compared, in one interleaved run, with what it cannot do without: one AES-CBC pass
and one HMAC over the same data with cryptography and hashlib.
"""

from __future__ import annotations

import hmac
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from lgss_keyring import sptlrpc
from tests.support import runs
from tests.support.site import LOOPBACK_NID, Site

BARS = {"lookup_us": 30.0, "sign_us": 25.0}
SEAL_SHARE = 0.6


def median(work: Callable[[], object], rounds: int) -> float:
    """Seconds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep the figures in this file.")
def main(json_file: Path | None) -> None:
    """Measure, print, and fail where a bar is missed."""
    for line in runs.remove_dead():
        click.echo(line, err=True)
    runs.begin()
    with (
        Site() as site,
        site.upcalls() as upcalls,
        sptlrpc.create_policy("keyring", prefix=upcalls.tag) as policy,
        policy.create_sec(sptlrpc.Target(LOOPBACK_NID, 1, "lgss-MDT0000-mdc", LOOPBACK_NID), "krb5p") as sec,
        sec.lookup_ctx() as context,
    ):
        context.refresh(30)
        assert context.session is not None and context.session.context is not None
        keys = context.session.context
        signing = sptlrpc.Session(keys, sptlrpc.parse_flavor("krb5i"), 2048)
        message, large = [os.urandom(1024)], os.urandom(1 << 20)

        def least() -> None:
            Cipher(AES(keys.ke), CBC(bytes(16))).encryptor().update(large)
            hmac.digest(keys.ki, large, "sha1")

        seals, leasts = [], []
        for _ in range(40):
            seals.append(median(lambda: context.seal(b"gss header", large), 1))
            leasts.append(median(least, 1))
        figures = {
            "lookup_us": median(lambda: sec.release_ctx(sec.lookup_ctx()), 20000) * 1e6,
            "sign_us": median(lambda: signing.sign(message), 20000) * 1e6,
            "seal_ms": statistics.median(seals) * 1e3,
            "aes_and_hmac_ms": statistics.median(leasts) * 1e3,
        }
    figures["seal_share"] = figures["aes_and_hmac_ms"] / figures["seal_ms"]
    for name, value in figures.items():
        print(f"{name:<18} {value:8.2f}")
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))
    missed = [name for name, bar in BARS.items() if figures[name] > bar]
    missed += ["seal_share"] if figures["seal_share"] < SEAL_SHARE else []
    print("bench: " + " ".join(f"{name}={value:.2f}" for name, value in figures.items()))
    if missed:
        sys.exit(f"bench: missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
