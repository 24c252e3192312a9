"""``make install`` touches only what is this program's, and nobody but root may write what it puts there."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from tests.support import native
from tests.support.installation import Installation, copy_checkout
from tests.support.stage import CHECKOUT

# As Lustre's package has it.
LUSTRES_RULE = "create lgssc * * /usr/sbin/lgss_keyring %o %k %t %d %c %u %g %T %P %S\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An installation that no test changes."""
    installation = Installation(tmp_path_factory.mktemp("original"))
    installation.install()
    return installation


@pytest.fixture
def installation(original: Installation, tmp_path: Path) -> Installation:
    """One to work with."""
    shutil.copytree(original.directory, tmp_path / "system", symlinks=True)
    return Installation(tmp_path / "system")


@pytest.fixture
def empty(tmp_path: Path) -> Installation:
    """A system where nothing is installed yet."""
    (tmp_path / "system").mkdir()
    return Installation(tmp_path / "system")


def test_modes_are_neither_the_checkouts_nor_the_umasks(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "system", copy_checkout(tmp_path / "checkout"))
    for path in (installation.checkout, *installation.checkout.rglob("*")):
        path.chmod(0o777)
    done = installation.make("install", shell="umask 000")
    assert done.returncode == 0, done.stderr
    paths = list((tmp_path / "system").rglob("*"))
    assert len(paths) > 500
    folder = installation.program.resolve().parent
    programs = {folder / name for name in ("lgss_keyring-native", "lgss_keyring.py", "lgssd.py")}
    for path in paths:
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
        if not path.is_symlink():
            mode = 0o755 if path.is_dir() or path in programs else 0o644
            assert status.st_mode & 0o7777 == mode, path


@pytest.mark.skipif(not native.has_compiler(), reason="no C compiler here")
def test_front_in_c_that_cannot_be_compiled(empty: Installation, tmp_path: Path) -> None:
    """The one in Python does without it, and whoever installs is told."""
    installation = Installation(empty.directory, copy_checkout(tmp_path / "checkout"))
    with (installation.checkout / "native/lgss_keyring.c").open("a") as source:
        source.write("no C\n")
    said = installation.install()
    assert "the front in Python (it cannot be compiled here: lgss_keyring.c:" in said
    assert installation.program.resolve().name == "lgss_keyring.py"
    assert "the front in C" in empty.install()
    assert installation.program.resolve().name == "lgss_keyring-native"


def test_interpreter_that_others_may_write_is_refused(empty: Installation, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    python = Path(shutil.copy("/usr/bin/python3", folder / "python3"))
    python.chmod(0o757)
    said = empty.refused(PYTHON=python)
    assert f"{python} may be written by others (mode 0757" in said and "chmod go-w" in said
    python.chmod(0o755)
    folder.chmod(0o777)
    assert f"{folder} may be written by others (mode 0777" in empty.refused(PYTHON=python)
    folder.chmod(0o755)
    os.chown(folder, 61234, 0)
    assert f"{folder} may be written by others (its owner is uid 61234)" in empty.refused(PYTHON=python)


@pytest.mark.parametrize("name", ["usr", "usr/lib", "usr/lib/lgss_keyring", "usr/sbin", "etc/request-key.d"])
def test_folder_that_others_may_write_is_refused(installation: Installation, name: str) -> None:
    folder = installation.directory / name
    folder.chmod(0o777)
    assert f"the target: {folder} may be written by others" in installation.refused()
    folder.chmod(0o775)
    os.chown(folder, 0, 61234)
    assert f"the target: {folder} may be written by others" in installation.refused()


def test_nothing_that_a_live_rule_leads_to_is_below_a_folder_that_a_reboot_empties(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    said = installation.refused(DESTDIR="", PREFIX=tmp_path / "usr")
    assert "/tmp may be written by others (mode 1777" in said


def test_lustres_own_program_is_kept(empty: Installation) -> None:
    program = empty.program
    program.parent.mkdir(parents=True)
    program.write_text("an ELF file\n")
    said = empty.refused()
    assert f"{program}: not written by this program" in said
    assert f"mv {program} {program}.before" in said
    program.rename(f"{program}.before")
    empty.install()
    # An update of Lustre's package puts it back.
    program.unlink()
    program.write_text("an ELF file\n")
    done = empty.make("uninstall")
    assert f"{program} is not this program's, so it is kept" in done.stdout
    assert sorted(empty.files()) == [program, program.with_name("lgss_keyring.before")]


def test_link_that_leads_elsewhere_is_kept(installation: Installation) -> None:
    installation.program.unlink()
    installation.program.symlink_to("/opt/other/lgss_keyring")
    assert f"{installation.program}: not written by this program" in installation.refused()
    installation.make("uninstall")
    assert installation.files() == [installation.program]


def test_foreign_rule_is_kept(empty: Installation) -> None:
    empty.rule.parent.mkdir(parents=True)
    empty.rule.write_text(LUSTRES_RULE)
    said = empty.refused()
    assert f"{empty.rule}: not written by this program" in said
    assert f"mv {empty.rule} {empty.rule}.before" in said
    assert not empty.make("uninstall").returncode
    assert empty.files() == [empty.rule] and empty.rule.read_text() == LUSTRES_RULE


def test_foreign_page_is_kept(empty: Installation) -> None:
    page = empty.directory / "usr/share/man/man8/lgss_keyring.8"
    page.parent.mkdir(parents=True)
    page.write_text(".TH lgss_keyring 8 2014 Lustre\n")
    assert f"{page}: not written by this program" in empty.refused()
    empty.make("uninstall")
    assert empty.files() == [page]


def test_the_way_out_is_dpkgs_where_there_is_dpkg(tmp_path: Path) -> None:
    """On the machine itself, which has no such program: asked of the function."""
    code = (
        "import sys; sys.path.insert(0, 'tools'); from pathlib import Path; import ownership\n"
        "target = ownership.Target(Path('.'), '/usr', '/etc', '')\n"
        "target.sbin = Path(sys.argv[1])\n"
        "target.refuse_foreign()\n"
    )
    program = tmp_path / "lgss_keyring"
    program.touch()
    (tmp_path / "dpkg-divert").touch(0o755)
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(tmp_path)],
        cwd=CHECKOUT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert f"dpkg-divert --local --rename --add {program}" in done.stderr


def test_edited_rule_is_kept_and_the_new_one_put_beside_it(installation: Installation) -> None:
    rule, new = installation.rule, installation.rule.with_name("lgssc.conf.new")
    ours = rule.read_text()
    edited = ours.replace("lgss_keyring %o", "lgss_keyring -R REALM %o")
    rule.write_text(edited)
    said = installation.install()
    assert f"{rule} was edited, so it is kept; the new one is {new}" in said
    assert rule.read_text() == edited and new.read_text() == ours
    installation.install()
    assert rule.read_text() == edited
    said = installation.make("uninstall").stdout
    assert f"{rule} was edited, so it is kept" in said
    assert installation.files() == [rule] and rule.read_text() == edited
    # It is known for ours by its first line when there is nothing else to know it by.
    installation.install()
    assert rule.read_text() == edited and new.exists()


def test_rule_that_an_earlier_version_wrote_is_replaced(empty: Installation, tmp_path: Path) -> None:
    earlier = Installation(empty.directory, copy_checkout(tmp_path / "checkout"))
    template = earlier.checkout / "request-key.d/lgssc.conf"
    template.write_text(template.read_text() + "# One line more.\n")
    earlier.install()
    assert "One line more" in earlier.rule.read_text()
    said = empty.install()
    assert "edited" not in said
    assert empty.rule.read_text() == (CHECKOUT / "request-key.d/lgssc.conf").read_text().replace(
        "@SBINDIR@", "/usr/sbin"
    )


@pytest.mark.parametrize("damage", ["module", "wheel", "wheels"])
def test_install_that_fails_leaves_what_was_there(
    installation: Installation, tmp_path: Path, damage: str
) -> None:
    broken = Installation(installation.directory, copy_checkout(tmp_path / "checkout"))
    if damage == "module":
        (broken.checkout / "lgss_keyring/worker/work.py").write_text("import what_is_not_there\n")
        said = broken.refused()
        assert "the new program does not run" in said and "what_is_not_there" in said
    else:
        wheels = tmp_path / "wheels"
        shutil.copytree(CHECKOUT / ".venv/wheels", wheels)
        (gssapi,) = wheels.glob("gssapi-*")
        if damage == "wheel":
            gssapi.write_bytes(gssapi.read_bytes()[:100_000])
        else:
            (next(wheels.glob("decorator-*"))).unlink()
        assert f"the wheels in {wheels} cannot be unpacked" in broken.refused(WHEELS=wheels)
    assert subprocess.run([installation.program, "--help"], capture_output=True).returncode == 0


def test_first_install_that_fails_leaves_nothing(empty: Installation, tmp_path: Path) -> None:
    broken = Installation(empty.directory, copy_checkout(tmp_path / "checkout"))
    (broken.checkout / "lgssd.py").write_text("#!\nsyntax error\n")
    assert broken.make("install").returncode
    assert not broken.files()
    assert not broken.library.exists()


def test_what_a_killed_install_left_goes_with_the_next(installation: Installation) -> None:
    environment = {"PATH": os.environ["PATH"]}
    command = ["make", "-s", "-C", str(CHECKOUT), "install", f"DESTDIR={installation.directory}"]
    command += [f"PYTHON={sys.executable}", f"WHEELS={CHECKOUT / '.venv/wheels'}"]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    end = time.monotonic() + 20
    while not list(installation.library.glob(".new-*")) and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(installation.library.glob(".new-*"))
    assert subprocess.run([installation.program, "--help"], capture_output=True).returncode == 0
    installation.install()
    assert not list(installation.library.glob(".new-*"))


def test_two_installs_do_not_meet(installation: Installation) -> None:
    descriptor = os.open(installation.library, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert "another install or uninstall works in" in installation.refused()
        installation.make("uninstall")
        assert installation.library.exists()
    finally:
        os.close(descriptor)


def test_old_installations_go_when_no_upcall_can_need_them(installation: Installation) -> None:
    first = installation.program.resolve().parent
    installation.install()
    second = installation.program.resolve().parent
    installation.install()
    assert first.exists() and second.exists()
    past = time.time() - 3700
    os.utime(first, (past, past))
    installation.install()
    assert not first.exists() and second.exists()
    # A process that has loaded one of its libraries, lgssd say.
    (library,) = (second / "gssapi/raw").glob("misc.*.so")
    code = (
        f"import mmap; file = open({str(library)!r}); held = mmap.mmap(file.fileno(), 0, access=1); "
        "print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.utime(second, (past, past))
        installation.install()
        assert second.exists()
        process.kill()
    os.utime(second, (past, past))
    installation.install()
    assert not second.exists()


def test_installation_without_versions_is_taken_over(installation: Installation) -> None:
    """As it was made until November 2026: all in the library's own folder."""
    version = installation.program.resolve().parent
    for path in list(version.iterdir()):
        if path.name != "installed.json":
            path.rename(installation.library / path.name)
    shutil.rmtree(version)
    (installation.library / "current").unlink()
    for name in ("lgss_keyring", "lgssd"):
        link = installation.directory / "usr/sbin" / name
        link.unlink()
        link.symlink_to(f"../lib/lgss_keyring/{name}.py")
    installation.install()
    assert installation.program.resolve().parent.parent == installation.library
    # For upcalls that began with it.
    assert (installation.library / "lgss_keyring").is_dir()
    installation.make("uninstall")
    assert not installation.files()


@pytest.mark.parametrize("source", ["checkout", "wheel"])
def test_python_without_pip(empty: Installation, tmp_path: Path, source: str) -> None:
    """As Debian's: a pip of the checkout's .venv or of the wheels serves it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    assert subprocess.run([python, "-m", "pip"], capture_output=True).returncode
    if source == "checkout":
        empty.install(PYTHON=python)
    else:
        wheels = tmp_path / "wheels"
        shutil.copytree(CHECKOUT / ".venv/wheels", wheels)
        bundled = Path(sysconfig.get_path("stdlib"), "ensurepip/_bundled")
        for wheel in bundled.glob("pip-*.whl"):
            shutil.copy(wheel, wheels)
        without = Installation(empty.directory, copy_checkout(tmp_path / "checkout"))
        without.install(PYTHON=python, WHEELS=wheels)
    assert subprocess.run([empty.program, "--help"], capture_output=True).returncode == 0


def test_what_runs_and_what_develops_are_set_up_apart(tmp_path: Path) -> None:
    """A machine where no package is installed: which ones each purpose asks for."""
    for name, text in (("dpkg-query", "exit 1"), ("id", "echo 1000"), ("apt-get", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    def asked(purpose: str) -> set[str]:
        command = [str(CHECKOUT / "setup-packages"), purpose]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        return set(done.stderr.split("install", 1)[1].split())

    assert asked("runtime") == {"keyutils", "libgssapi-krb5-2"}
    assert not {name for name in asked("build") if name.startswith("krb5-")}
    assert {"gcc", "libkrb5-dev"} <= asked("build")
    assert asked("runtime") | asked("build") | {"krb5-kdc"} <= asked("develop")
