"""An upcall's processes: what each may reach, and what becomes of the key when one is killed."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from lgss_keyring.formats import payload
from tests.support import peers, table
from tests.support.cgroup import Cgroup
from tests.support.requestor import Requestor
from tests.support.site import Site, user_callout

from .answers import established
from .kernel_log import kernel_log
from .waiting import pace, root_processes, upcall_processes, within

pytestmark = pytest.mark.vm


def test_worker_of_a_user_has_no_way_back(site: Site, ticket: int) -> None:
    with (
        peers.Silent() as peer,
        site.upcalls({"rpcsec_gss": {"port": peer.port, "reply_timeout": 5}}) as upcalls,
    ):
        with Requestor(ticket) as user:
            user.start(upcalls.name(), user_callout(), wait=0)
            assert user.result().error == 0
            assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
            processes = upcall_processes(site)
            status = {pid: Path(f"/proc/{pid}/status").read_text() for pid in processes}
            users = [
                text for text in status.values() if f"Uid:\t{ticket}\t{ticket}\t{ticket}\t{ticket}\n" in text
            ]
            # Witness and monitor are root's.
            assert len(status) == 3 and len(users) == 1, status
            (worker,) = users
            assert f"Gid:\t{ticket}\t{ticket}\t{ticket}\t{ticket}\n" in worker
            for line in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                assert f"{line}:\t0000000000000000" in worker
            assert "NoNewPrivs:\t1" in worker
            assert "Groups:\t \n" in worker
            for pid in processes:
                os.kill(pid, 9)


def test_nobody_else_of_that_uid_can_look_into_the_worker(site: Site, ticket: int) -> None:
    with (
        peers.Silent() as peer,
        site.upcalls({"rpcsec_gss": {"port": peer.port, "reply_timeout": 5}}) as upcalls,
    ):
        with Requestor(ticket) as user:
            assert user.ask(upcalls.name(), user_callout(), wait=0).error == 0
            assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
            (worker,) = [
                p
                for p in upcall_processes(site)
                if f"Uid:\t{ticket}" in Path(f"/proc/{p}/status").read_text()
            ]
            spy = subprocess.run(
                ["/bin/sh", "-c", f"cat /proc/{worker}/environ || ls /proc/{worker}/fd"],
                user=ticket,
                group=ticket,
                extra_groups=[],
                capture_output=True,
                check=False,
            )
            assert spy.returncode != 0 and b"denied" in spy.stderr and not spy.stdout
            for pid in upcall_processes(site):
                os.kill(pid, 9)


def test_monitor_killed_takes_the_worker_along(site: Site, ticket: int) -> None:
    """And its witness answers, at once."""
    with peers.Silent() as peer:
        settings = {"rpcsec_gss": {"port": peer.port, "reply_timeout": 30}}
        with site.upcalls(settings) as upcalls, Requestor(ticket) as user:
            user.start(upcalls.name(), user_callout(), wait=pace(8))
            assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
            began = time.monotonic()
            os.kill(root_processes(site)[1], 9)
            answer = user.result()
            assert pace.met(time.monotonic() - began, 1)
            assert within(1, lambda: not upcall_processes(site))
            event = upcalls.log("LGSS_ERROR=")[-1]
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.EIO, 0)
    table.judge("killed", event["LGSS_ERRNO"], event["message"])
    assert "signal 9" in event["message"] and event["LGSS_ERROR"] == "killed"


def test_witness_killed_costs_nothing(site: Site, ticket: int) -> None:
    with peers.Silent() as peer:
        settings = {"rpcsec_gss": {"port": peer.port, "reply_timeout": 1}}
        with site.upcalls(settings) as upcalls, Requestor(ticket) as user:
            user.start(upcalls.name(), user_callout(), wait=pace(8))
            assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
            os.kill(root_processes(site)[0], 9)
            answer = user.result()
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.ETIMEDOUT, 0)


def test_a_machine_short_of_memory_spares_what_answers(site: Site, ticket: int) -> None:
    """The kernel takes the worker, whose end is answered."""
    with peers.Silent() as peer, site.upcalls({"rpcsec_gss": {"port": peer.port}}) as upcalls:
        with Requestor(ticket) as user:
            user.start(upcalls.name(), user_callout(), wait=0)
            user.result()
            assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
            spared = root_processes(site)
            for pid in upcall_processes(site):
                adjusted = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
                assert (adjusted < 0) == (pid in spared)
            for pid in upcall_processes(site):
                os.kill(pid, 9)


def test_worker_killed_is_answered_at_once(site: Site, ticket: int) -> None:
    with peers.Silent() as peer:
        with site.upcalls({"rpcsec_gss": {"port": peer.port, "reply_timeout": 30}}) as upcalls:
            with Requestor(ticket) as user:
                user.start(upcalls.name(), user_callout(), wait=8)
                assert within(3, lambda: any("getting a ticket" in e["message"] for e in upcalls.log()))
                (worker,) = [
                    p
                    for p in upcall_processes(site)
                    if f"Uid:\t{ticket}" in Path(f"/proc/{p}/status").read_text()
                ]
                # Users may do this to processes of their own: it must harm nobody else.
                subprocess.run(
                    ["kill", "-9", str(worker)], user=ticket, group=ticket, extra_groups=[], check=True
                )
                answer = user.result()
            event = upcalls.log("LGSS_ERROR=worker-died")[-1]
    assert answer.updated is not None
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.EIO, 0)
    assert "signal 9" in event["message"]


def test_memory_of_an_upcall(site: Site, ticket: int) -> None:
    with Cgroup() as cgroup:
        wrapper = site.stage.directory / "wrapper"
        cgroup.write_wrapper(wrapper, site.stage.program)
        with site.upcalls(program=wrapper) as upcalls, Requestor(ticket) as user:
            peak = 0
            for done in range(1, 6):
                user.start(upcalls.name(), user_callout())
                while sum(event.get("LGSS_STEP") == "updated" for event in upcalls.log()) < done:
                    peak = max(peak, cgroup.pss())
                established(user.result())
    assert 5 << 20 < peak < 40 << 20


def test_the_child_imports_only_what_it_uses(site: Site) -> None:
    """The modules of a whole user's upcall, loaded as the child loads them."""
    code = (
        "import sys; sys.path.append(sys.argv[1]); from lgss_keyring.front import keyctl;"
        "from lgss_keyring.monitor import upcall; from lgss_keyring.worker import mech; import types;"
        "mech.load('krb5').prepare(types.SimpleNamespace(is_machine=False));"
        "from lgss_keyring.worker.channel import rpcsec_gss; print(*sorted(sys.modules))"
    )
    interpreter = (site.stage.script.read_text().splitlines()[0]).removeprefix("#!").split()
    done = subprocess.run(
        [*interpreter, "-c", code, str(site.stage.directory)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    unused = {
        "argparse", "click", "dataclasses", "email", "json", "logging", "pathlib", "pkgutil", "shutil", "ssl",
        "subprocess", "tempfile", "threading", "tomllib", "unittest", "asyncio", "lockfile",
        "gssapi.creds", "gssapi._win_config", "gssapi.raw.ext_s4u", "gssapi.raw.ext_dce",
        "lgss_keyring.worker.creds.machine", "lgss_keyring.front.refusal", "tests",
    }  # fmt: skip
    assert not loaded & unused
    assert "gssapi.raw.sec_contexts" in loaded


def test_a_damaged_installation_still_answers(site: Site, ticket: int) -> None:
    """The front's last resort: the package cannot be loaded, the key gets ELIBACC."""
    broken = site.stage.directory / "broken"
    (broken / "lgss_keyring").mkdir(parents=True)
    package = site.stage.directory / "lgss_keyring"
    for name in ("__init__.py", "front", "formats"):
        (broken / "lgss_keyring" / name).symlink_to(package / name)
    front = broken / "lgss_keyring.py"
    front.write_text(site.stage.script.read_text())
    front.chmod(0o755)
    with site.upcalls(program=front) as upcalls, Requestor(ticket) as user, kernel_log() as line_with:
        answer = user.ask(upcalls.name(), user_callout())
        line = line_with(f"key {answer.key}: ModuleNotFoundError")
    assert payload.unpack(answer.data) == payload.FailurePayload(errno.ELIBACC, 0)
    assert answer.updated is not None and pace.met(answer.updated, 1)
    assert not line or line.endswith(f"; reinstall lgss_keyring | LGSS_REQUESTOR={ticket}")


def test_an_installation_without_its_first_module_says_so(site: Site, ticket: int) -> None:
    """Nothing can answer the key then; but somebody has to say why."""
    front = site.stage.directory / "alone" / "lgss_keyring.py"
    front.parent.mkdir()
    # syslog goes to a file here: nothing of ours is there to be asked for a log.
    told = front.parent / "told"
    text = site.stage.script.read_text()
    assert text.count("    import syslog\n") == 1
    fake = (
        "    class syslog:\n"
        "        LOG_PID = LOG_AUTHPRIV = LOG_ERR = 0\n"
        "        openlog = print\n"
        f"        syslog = lambda _, line: open({str(told)!r}, 'w').write(line)\n"
    )
    front.write_text(text.replace("    import syslog\n", fake))
    front.chmod(0o755)
    with site.upcalls(program=front) as upcalls, Requestor(ticket) as user, kernel_log() as line_with:
        assert user.ask(upcalls.name(), user_callout()).error == errno.ENOKEY
        line = line_with("No module named 'lgss_keyring.front'")
    assert not line or line.endswith("; reinstall lgss_keyring")
    assert "No module named 'lgss_keyring.front'" in told.read_text()
    assert "reinstall" in told.read_text()
