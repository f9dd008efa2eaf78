from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import EdgedError, SettingsError
from edged.settings import (
    SETTINGS,
    HostPort,
    ensure_api_key,
    parse_home,
    parse_host_port,
    parse_http,
    parse_name,
    parse_size,
    read_settings,
)


def test_defaults() -> None:
    settings = read_settings({"XDG_DATA_HOME": "/data"})
    assert settings.home == Path("/data/edged")
    assert (settings.port, settings.join_port) == (7411, 7412)
    assert str(settings.http) == "127.0.0.1:7480"
    assert (settings.join, settings.peer, settings.memory, settings.model) == (None, None, None, None)
    assert (settings.parallel, settings.kv_type, settings.wire_type) == (8, "f16", "f32")
    assert settings.threads >= 1
    assert parse_name(settings.name) == settings.name
    assert settings.socket_path == Path("/data/edged/run/daemon.sock")


def test_home_is_in_the_users_directory_without_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert read_settings({}).home == Path("/home/ann/.edged")
    assert read_settings({"XDG_DATA_HOME": "not/absolute"}).home == Path("/home/ann/.edged")


def test_a_flag_wins_over_its_variable() -> None:
    environ = {"EDGED_PORT": "8000", "EDGED_NAME": "nuc"}
    settings = read_settings(environ, {"port": 9000, "name": None})
    assert (settings.port, settings.name) == (9000, "nuc")


def test_every_setting_has_a_variable() -> None:
    given = {
        "EDGED_HOME": "/tmp/e",
        "EDGED_NAME": "nuc",
        "EDGED_PORT": "8000",
        "EDGED_HTTP": "[::]:0",
        "EDGED_JOIN": "token",
        "EDGED_PEER": "nuc.lan:7411",
        "EDGED_MEMORY": "1.5G",
        "EDGED_MODEL": "parrot",
        "EDGED_API_KEY": "0123456789",
        "EDGED_PARALLEL": "4",
        "EDGED_CTX": "1024",
        "EDGED_THREADS": "2",
        "EDGED_KV_TYPE": "q8_0",
        "EDGED_FLASH_ATTENTION": "ON",
        "EDGED_WIRE_TYPE": "q8",
        "EDGED_OBJECTIVE": "latency",
        "EDGED_ROUNDS": "2",
        "EDGED_RESIDENCY": "off",
        "EDGED_LOG_LEVEL": "debug",
    }
    assert {setting.variable for setting in SETTINGS.values()} == set(given)
    settings = read_settings(given)
    assert settings.http == HostPort("::", 0)
    assert settings.peer == HostPort("nuc.lan", 7411)
    assert settings.memory == 3 * 2**29
    assert (settings.ctx_for(512), settings.flash_attention, settings.rounds) == (1024, "on", 2)
    assert "0123456789" not in repr(settings)
    assert "token" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EDGED_PORT", "0"),
        ("EDGED_PORT", "65535"),  # there is no port after it
        ("EDGED_PORT", "7411x"),
        ("EDGED_HTTP", "7480"),
        ("EDGED_PEER", "nuc:0"),
        ("EDGED_PEER", "http://nuc:7411"),
        ("EDGED_MEMORY", "lots"),
        ("EDGED_MEMORY", "-1G"),
        ("EDGED_PARALLEL", "65"),
        ("EDGED_CTX", "8"),
        ("EDGED_THREADS", "0"),
        ("EDGED_ROUNDS", "0"),
        ("EDGED_KV_TYPE", "f17"),
        ("EDGED_FLASH_ATTENTION", "maybe"),
        ("EDGED_WIRE_TYPE", "f64"),
        ("EDGED_LOG_LEVEL", "loud"),
        ("EDGED_NAME", "two words"),
        ("EDGED_API_KEY", "short"),
        ("EDGED_MODEL", "a\nb"),
        ("EDGED_HOME", "/" + "x" * 120),
    ],
)
def test_a_malformed_value_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read_settings({variable: value})
    assert refused.value.message.startswith(f"{variable}: ")
    assert "expected" in refused.value.message


def test_a_secret_is_not_repeated_in_the_refusal() -> None:
    with pytest.raises(SettingsError) as refused:
        read_settings({"EDGED_API_KEY": "my secret"})
    assert "my secret" not in refused.value.message


def test_an_unknown_variable_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"EDGED_PROT is not .* EDGED_PORT\?"):
        read_settings({"EDGED_PROT": "1"})
    with pytest.raises(SettingsError, match="no setting 'colour'"):
        read_settings({}, {"colour": "red"})


def test_an_empty_variable_is_unset() -> None:
    assert read_settings({"EDGED_MODEL": "", "EDGED_API_KEY": ""}).model is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4G", 4 * 2**30),
        ("4g", 4 * 2**30),
        ("4GiB", 4 * 2**30),
        ("4GB", 4 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5k", 1536),
        ("2T", 2 * 2**40),
        ("123", 123),
        ("123B", 123),
        (" 8 M ", 8 * 2**20),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "0", "0.1", "4P", "4Gi", "1e9", "4 G B", "٤G" * 2])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="a size"):
        parse_size(text)


@given(st.text(max_size=30))
def test_parsers_refuse_or_understand_anything(text: str) -> None:
    for setting in SETTINGS.values():
        try:
            value = setting.parse(text)
        except ValueError as error:
            assert str(error)
        else:
            assert value is None or isinstance(value, (int, str, Path, HostPort))


def test_host_and_port() -> None:
    assert parse_host_port("[fe80::1%eth0]:80") == HostPort("fe80::1%eth0", 80)
    assert str(HostPort("::1", 80)) == "[::1]:80"
    assert read_settings({"EDGED_HTTP": "off"}).http is None
    assert read_settings({"EDGED_HTTP": "1.2.3.4:5"}, {"http": parse_http("off")}).http is None
    near, far = ("127.0.0.1", "127.9.9.9", "::1", "localhost"), ("0.0.0.0", "::", "127.0.0.1.example", "nuc")
    assert all(HostPort(host, 1).is_loopback for host in near)
    assert not any(HostPort(host, 1).is_loopback for host in far)


def test_context_is_the_models_own_up_to_a_limit() -> None:
    settings = read_settings({})
    assert (settings.ctx_for(2048), settings.ctx_for(131072)) == (2048, 4096)


def test_a_home_is_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="a directory"):
        parse_home(str(file))


def test_a_key_is_made_once_for_its_owner_only(home: Path) -> None:
    settings = read_settings({}, {"home": home / "new"})
    key = ensure_api_key(settings)
    assert len(key) >= 32
    assert ensure_api_key(settings) == key
    assert settings.api_key_path.stat().st_mode & 0o777 == 0o600
    assert ensure_api_key(read_settings({"EDGED_API_KEY": "given-key"}, {"home": home})) == "given-key"


def test_a_key_that_others_can_read_is_refused(home: Path) -> None:
    settings = read_settings({}, {"home": home})
    ensure_api_key(settings)
    settings.api_key_path.chmod(0o644)
    with pytest.raises(EdgedError, match="can be read by others"):
        ensure_api_key(settings)
