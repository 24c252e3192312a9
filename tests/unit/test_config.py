"""The configuration: none is needed, and a wrong one is said in words."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lgss_keyring.formats import config
from lgss_keyring.formats.errors import ConfigError
from lgss_keyring.system import config_file


def load(tmp_path: Path, text: str, mode: int = 0o644) -> config.Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    path.chmod(mode)
    return config_file.load(str(path))


def test_defaults_need_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config_file, "DEFAULT_PATH", str(tmp_path / "none"))
    assert config_file.load() == config.Config()
    assert config_file.load().krb5.keytab == "/etc/krb5.keytab"


def test_defaults_are_what_sites_rely_on() -> None:
    assert config.Config() == config.Config(
        log=config.Log(file="", level="info"),
        upcall=config.Upcall(timeout=30, machine_wait=10, containers=True),
        krb5=config.Krb5(
            config="", keytab="/etc/krb5.keytab", ccache="", principal="", ccache_directory="/run/lgss"
        ),
        rpcsec_gss=config.RpcsecGss(
            program=0x20004C47, version=1, port=20988, connect_timeout=5, reply_timeout=10
        ),
        names=config.Names(
            reverse_dns=True, canonicalize=True, timeout=10, program="/etc/lustre/nid2hostname"
        ),
        lustre=config.Lustre(parameters="", reply_timeout=100),
        sptlrpc=config.Sptlrpc(policy="keyring"),
        hosts={},
        path="/etc/lgss_keyring.toml",
    )


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config_file.load(str(tmp_path / "none"))


def test_every_section(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        '[log]\nfile = "/x"\nlevel = "debug"\n[upcall]\ntimeout = 5\n[krb5]\nkeytab = "/k"\nconfig = "/c"\n'
        "[rpcsec_gss]\nprogram = 1\nversion = 2\nport = 3\nconnect_timeout = 4\nreply_timeout = 5\n"
        '[hosts]\n"192.0.2.5@tcp" = "mds1"\n',
    )
    assert loaded.log == config.Log("/x", "debug")
    assert loaded.upcall.timeout == 5
    assert loaded.krb5 == config.Krb5("/c", "/k")
    assert loaded.rpcsec_gss == config.RpcsecGss(1, 2, 3, 4, 5)
    assert loaded.hosts == {"192.0.2.5@tcp": "mds1"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[log]\nfiel = 'x'", "unknown key fiel in \\[log\\]; known: file, level"),
        ("[logs]\n", "unknown section \\[logs\\]; known: log"),
        ("log = 1", "log is a section"),
        ("[log]\nlevel = 'loud'", "one of error, warning, info, debug"),
        ("[log]\nfile = 'relative'", "absolute path"),
        ("[upcall]\ntimeout = '5'", "a whole number is needed"),
        ("[upcall]\ntimeout = true", "a whole number is needed"),
        ("[upcall]\ntimeout = 0", "1 to 3600"),
        ("[rpcsec_gss]\nport = 65536", "1 to 65535"),
        ("[rpcsec_gss]\nprogram = -1", "0 to 4294967295"),
        ("[krb5]\nkeytab = 5", "a string in quotes"),
        ("[krb5]\nkeytab = ''", r"config.toml: \[krb5\] keytab: it is empty, and an absolute path is needed"),
        ("[krb5]\nkeytab = 'krb5.keytab'", "keytab: an absolute path is needed"),
        ("[krb5]\nkeytab = 'FILE:krb5.keytab'", "keytab: an absolute path is needed"),
        ("[krb5]\nccache = 'krb5cc'", "ccache: an absolute path is needed"),
        ("[krb5]\nccache_directory = ''", "ccache_directory: it is empty"),
        ("[krb5]\nccache_directory = 'lgss'", "ccache_directory: an absolute path is needed"),
        ("[krb5]\nconfig = 'krb5.conf'", r"\[krb5\] config: an absolute path is needed"),
        ("[names]\nprogram = 'nid2hostname'", "program: an absolute path is needed"),
        ("[names]\nprogram = ''", "program: it is empty"),
        ("[names]\ntimeout = 3601", "1 to 3600 is possible"),
        ("[names]\ncanonicalize = 'false'", "true or false is needed"),
        ("[lustre]\nparameters = 'sys/fs/lustre'", "parameters: an absolute path is needed"),
        ("[lustre]\nreply_timeout = 3601", "1 to 3600 is possible"),
        ("[upcall]\nmachine_wait = 61", "1 to 60 is possible"),
        ("[upcall]\nmachine_wait = 0", "1 to 60 is possible"),
        ("[sptlrpc]\npolicy = 'socket'", "one of keyring, pipe"),
        ("[hosts]\n'192.0.2.5@tpc' = 'a'", "'192.0.2.5@tpc' is no NID, address, target or node name; a NID"),
        ("[hosts]\n'192.0.2.500@tcp' = 'a'", "is no NID"),
        ("[hosts]\n'192.0.2.500' = 'a'", "is no NID"),
        ("[hosts]\n'fd00::5@gni' = 'a'", "is no NID"),
        ("[hosts]\n'fd00::x' = 'a'", "is no NID"),
        ("[hosts]\n'MGC192.0.2.5@tpc' = 'a'", "is no NID"),
        ("[hosts]\n'my host' = 'a'", "is no NID"),
        ("[hosts]\n'' = 'a'", "is no NID"),
        ("[hosts]\n'192.0.2.5' = 'a b'", "a host name in quotes"),
        ("[hosts]\n'192.0.2.5' = 'a@B.TEST'", "a host name in quotes"),
        ("[hosts]\n'192.0.2.5' = 'host/a'", "a host name in quotes"),
        ("[hosts]\n'192.0.2.5' = 'a..b'", "a host name in quotes"),
        ("[hosts]\n'192.0.2.5' = '-a'", "a host name in quotes"),
        ("[hosts]\n'192.0.2.5' = ''", "a host name in quotes"),
        ("[hosts]\n'192.0.2.5@tcp' = 'a'\n'192.0.2.5@tcp0' = 'b'", "two names for 192.0.2.5@tcp"),
        ("[hosts]\n'192.0.2.5' = 5", "a host name in quotes"),
        ("[log\n", "line 1"),
        ('[log]\nfile = "/x\\u0000y"', "do not print"),
        ('[krb5]\nkeytab = "/x\\u0000y"', "do not print"),
        ('[hosts]\n"192.0.2.5" = "a\\u0000"', "a host name"),
        pytest.param("[upcall]\ntimeout = " + "9" * 5000, "config.toml", id="digits"),
        pytest.param("[upcall]\ntimeout = " + "[" * 5000, "config.toml", id="arrays"),
        pytest.param("[upcall]\ntimeout = " + "{a=" * 5000, "config.toml", id="tables"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "looked_up"),
    [
        ("192.0.2.5@tcp0", "192.0.2.5@tcp"),
        ("192.0.2.5@tcp", "192.0.2.5@tcp"),
        ("10.0.0.1@o2ib00", "10.0.0.1@o2ib"),
        ("10.0.0.1@o2ib3", "10.0.0.1@o2ib3"),
        ("5@type99-1", "5@type99-1"),
        ("fd00::5@tcp0", "fd00::5@tcp"),
        ("fd00::5@o2ib", "fd00::5@o2ib"),
        ("fd00::5@o2ib10", "fd00::5@o2ib10"),
        ("fd00::5", "fd00::5"),
        ("192.0.2.5", "192.0.2.5"),
        ("MGC192.0.2.5@tcp0", "MGC192.0.2.5@tcp"),
        ("lustre-MDT0000", "lustre-MDT0000"),
        ("lustre-MDT0000-mdc-ffff8f00", "lustre-MDT0000-mdc-ffff8f00"),
        ("client7.example.com", "client7.example.com"),
    ],
)
def test_keys_of_hosts_are_those_that_are_looked_up(tmp_path: Path, key: str, looked_up: str) -> None:
    assert load(tmp_path, f'[hosts]\n"{key}" = "mds1.example.com"\n').hosts == {looked_up: "mds1.example.com"}


@pytest.mark.parametrize(
    "setting",
    ["keytab = '/k'", "keytab = 'FILE:/k'", "ccache = ''", "ccache = 'KCM:0'", "ccache = 'FILE:/c'"],
)
def test_names_of_keytabs_and_caches_that_are_taken(tmp_path: Path, setting: str) -> None:
    load(tmp_path, f"[krb5]\n{setting}\n")


def test_a_text_that_speaks_of_a_section_names_the_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, "")
    path = str(tmp_path / "config.toml")
    assert loaded.hint_with_path("no name", "add it to [hosts]") == f"add it to [hosts] (in {path})"
    assert loaded.hint_with_path("[krb5] principal x is none", "") == f"see {path}"
    assert loaded.hint_with_path(f"it is in [hosts] of {path}", "mend it") == "mend it"
    assert loaded.hint_with_path("no KDC", "check [realms] in krb5.conf") == "check [realms] in krb5.conf"
    default = config.Config()
    assert default.hint_with_path("no name", "see [hosts]") == "see [hosts] (in /etc/lgss_keyring.toml)"


def test_paths_that_may_be_empty(tmp_path: Path) -> None:
    loaded = load(tmp_path, "[log]\nfile = ''\n[krb5]\nconfig = ''\n[lustre]\nparameters = ''\n")
    assert (loaded.log.file, loaded.krb5.config, loaded.lustre.parameters) == ("", "", "")


def test_every_number_has_a_range() -> None:
    for section in config.SECTIONS.values():
        assert set(section.allowed) <= set(section._fields)
        for key in section._fields:
            if type(getattr(section, key)) is int:
                assert isinstance(section.allowed[key], range)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="others may write"):
        load(tmp_path, "", mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("")
    os.chown(path, 61234, 61234)
    with pytest.raises(ConfigError, match="others may write"):
        config_file.load(str(path))


def test_only_regular_files_of_a_sane_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="no regular file"):
        config_file.load(str(tmp_path / "fifo"))
    with pytest.raises(ConfigError, match="no regular file"):
        load(tmp_path, "#" * 8193)
    load(tmp_path, "#" * 8192)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 2"):
        config_file.load(str(path))


def test_the_slowest_file_that_is_taken_costs_no_upcall_its_time(tmp_path: Path) -> None:
    """The time of tomllib grows with the square of a dotted key's length: 64 kB take 12 s or more."""
    key = "a." * 4093 + "a=1"
    started = time.process_time()
    with pytest.raises(ConfigError, match="unknown section"):
        load(tmp_path, key)
    assert time.process_time() - started < 2
    with pytest.raises(ConfigError, match="at most 8192 bytes"):
        load(tmp_path, "a." * 4096 + "a=1")
