import re
from pathlib import Path
from typing import Any

import pytest

from babysitter.agent.settings import AgentSettings
from babysitter.settings import BabysitterSettings
from common.settings import (
    SERVICE_PREFIXES,
    CommaList,
    Layer,
    Settings,
    SettingsError,
    build,
    env_layer,
    file_layer,
    load,
    option,
    options,
    read_file,
    unknown_variables,
)
from registry.settings import RegistrySettings
from router.settings import RouterSettings

SERVICES: dict[str, type[Settings]] = {
    "SVC_REGISTRY_": RegistrySettings,
    "SVC_ROUTER_": RouterSettings,
    "SVC_BABYSITTER_": BabysitterSettings,
    "SVC_AGENT_": AgentSettings,
}


class Inner(Settings):
    """A nested section."""

    delay_s: float = option(5.0, "Pause between tries, seconds.", flags=["--delay"], env=["DELAY"], ge=0)
    tries: int = option(3, "Tries.")


class Sample(Settings):
    """Settings of the sample service.

    Not part of the help.
    """

    name: str = option(..., "Its name.", pattern=r"^[a-z]+$")
    port: int = option(8000, "Port to listen on.", flags=["-p", "--port"], ge=1, le=65535)
    peers: CommaList = option((), "Other services.")
    verbose: bool = option(default=False, help_text="Say more: 100 % of it.")
    labels: dict[str, str] = option(dict, "Any table.", flags=())
    inner: Inner = option(Inner, "Section.")


def settings(*argv: str, **env: str) -> Sample:
    return load(Sample, prog="svc-sample", env_prefix="SVC_SAMPLE_", argv=argv, env=env)


def toml(tmp_path: Path, text: str, name: str = "sample.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_load_takes_defaults_then_file_then_environment_then_flags(tmp_path: Path) -> None:
    file = toml(tmp_path, 'name = "file"\nport = 1\npeers = ["a", "b"]\n[inner]\ndelay_s = 1\ntries = 9\n')
    assert settings("--config", str(file)).port == 1
    assert settings("--config", str(file), SVC_SAMPLE_PORT="2").port == 2
    found = settings("--config", str(file), "--port", "3", SVC_SAMPLE_PORT="2", DELAY="0.5")
    assert found.port == 3
    assert found.peers == ("a", "b")
    assert found.inner == Inner(delay_s=0.5, tries=9)


def test_load_finds_the_file_by_environment(tmp_path: Path) -> None:
    file = toml(tmp_path, "name: yaml\nverbose: true\n", "sample.yaml")
    assert settings(SVC_SAMPLE_CONFIG=str(file)).verbose


def test_load_reads_comma_lists_and_switches_from_flags() -> None:
    found = settings("--name", "x", "--peers", "a, b,,c", "--verbose")
    assert found.peers == ("a", "b", "c")
    assert found.verbose
    assert not settings("--name", "x", "--no-verbose", SVC_SAMPLE_VERBOSE="true").verbose


def test_an_empty_variable_counts_as_not_set() -> None:
    assert settings("--name", "x", SVC_SAMPLE_PORT="").port == 8000


def test_the_plain_name_of_a_variable_is_taken_and_the_full_one_wins_W58() -> None:
    def port(**env: str) -> int:
        found = load(RouterSettings, prog="svc-router", env_prefix="SVC_ROUTER_", argv=[], env=env)
        return found.router_port

    assert port(SVC_ROUTER_PORT="8005") == 8005
    assert port(SVC_ROUTER_ROUTER_PORT="8006") == 8006
    assert port(SVC_ROUTER_PORT="8005", SVC_ROUTER_ROUTER_PORT="8006") == 8006
    with pytest.raises(SettingsError, match="environment SVC_ROUTER_PORT: 'router_port'"):
        port(SVC_ROUTER_PORT="tcp://10.0.0.1:8000")


def test_variables_that_nobody_reads_are_named_with_what_was_meant_W58() -> None:
    env = {
        "SVC_ROUTER_WORKER": "2",
        "SVC_ROUTER_WORKERS": "2",
        "SVC_ROUTER_CONFIG": "x",
        "SVC_ROUTR_PORT": "8005",
        "SVC_REGISTRY_PROT": "18000",  # the registry's to tell
        "SVC_VENV": "x",
        "SVC_ROUTER_URL": "svcctl's",
        "ROUTER_PORT": "8000",
        "SVCFOO": "x",
    }
    assert unknown_variables(RouterSettings, "SVC_ROUTER_", env) == {
        "SVC_ROUTER_WORKER": "SVC_ROUTER_WORKERS",
        "SVC_ROUTR_PORT": "SVC_ROUTER_PORT",
    }


@pytest.mark.parametrize("prefix", SERVICES)
def test_no_variable_has_two_meanings_W58(prefix: str) -> None:
    names = [name for setting in options(SERVICES[prefix], prefix) for name in setting.env]
    assert len(names) == len(set(names))
    assert prefix in SERVICE_PREFIXES


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings("--name", "x").port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("argv", "env", "expected"),
    [
        (["--name", "x", "--port", "70000"], {}, "--port|-p: 'port': input should be less than or equal to 65535 (got 70000)"),
        (["--name", "x"], {"SVC_SAMPLE_PORT": "many"}, "environment SVC_SAMPLE_PORT: 'port': input should be a valid integer"),
        (["--name", "x"], {"DELAY": "-1"}, "environment DELAY: 'inner.delay_s': input should be greater than or equal to 0 (got -1)"),
        (["--name", "x"], {"DELAY": "inf"}, "environment DELAY: 'inner.delay_s': input should be a finite number (got inf)"),
        (["--name", "X!"], {}, "--name: 'name': string should match pattern"),
        ([], {}, "'name' is missing; set it in the file or with --name"),
    ],
)  # fmt: skip
def test_an_error_names_the_source_and_the_key(argv: list[str], env: dict[str, str], expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(*argv, **env)
    assert expected.replace("--port|-p", "-p") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = 'x'\nprot = 1", "{file}: unknown key 'prot' (did you mean 'port'?)"),
        ("name = 'x'\n[inner]\ntires = 1", "{file}: unknown key 'inner.tires' (did you mean 'tries'?)"),
        ("name = 'x'\nzzzzzz = 1", "{file}: unknown key 'zzzzzz'"),
        ("port = 1", "{file}: 'name' is missing; set it in the file or with --name"),
        ("name = 'x'\nport = true", "{file}: 'port': must be a number (got true)"),
        ("name = 'x'\n[inner]\ndelay_s = false", "{file}: 'inner.delay_s': must be a number (got false)"),
        ("name = 'x'\ninner = 5", "{file}: 'inner': input should be a valid dictionary"),
        ("name = 'x'\n[labels]\na = true", "{file}: 'labels.a': input should be a valid string"),
        ("name = 'x'\nport = ", "{file}: not valid TOML: "),
        ("name = 'x'\nname = 'y'", "{file}: not valid TOML: "),
        ("a = " + "[" * 1000, "{file}: not valid TOML: "),
    ],
)
def test_a_faulty_file_is_named_with_the_key(tmp_path: Path, text: str, expected: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        settings("--config", str(file))
    assert expected.format(file=file) in str(caught.value)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    file = toml(tmp_path, "port = 0\nnonsense = 1")
    with pytest.raises(SettingsError) as caught:
        settings("--config", str(file))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("x.yaml", b"a: [1", "not valid YAML"),
        ("x.yaml", b"[" * 5000, "not valid YAML"),
        ("x.yaml", b"\xff\xfe", "not valid YAML"),
        ("x.toml", b"\xff", "not valid TOML"),
        ("x.toml", b"#" * (1 << 20) + b"#", "larger than 1048576 bytes"),
    ],
)
def test_read_file_refuses_what_cannot_be_parsed(tmp_path: Path, name: str, raw: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(SettingsError, match=expected):
        read_file(tmp_path / name)


@pytest.mark.parametrize("name", ["x.json", "x.conf"])
def test_read_file_takes_json_indented_by_tabs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{\n\t"a": [\n\t\t1e3\n\t]\n}\n')
    assert read_file(tmp_path / name) == {"a": [1000.0]}


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("x.toml", b"\xef\xbb\xbfname = 'a'\n"),
        ("x.yaml", b"\xef\xbb\xbfname: a\n"),
        ("x.conf", b"name = 'a'\n"),
        ("x.conf", b"name: a\n"),
        ("settings", b'{"name": "a"}'),
    ],
)
def test_read_file_takes_what_people_have_W32(tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    assert read_file(tmp_path / name) == {"name": "a"}


def test_read_file_of_another_name_may_hold_a_list_W32(tmp_path: Path) -> None:
    (tmp_path / "static.conf").write_text('[{"name":"a"}]')  # as the router's static services are one
    assert read_file(tmp_path / "static.conf") == [{"name": "a"}]


def test_read_file_of_another_name_with_a_mistake_is_told_as_toml_W32(tmp_path: Path) -> None:
    (tmp_path / "x.conf").write_text("name = 'a\nport = 1\n")
    with pytest.raises(SettingsError, match=r"x\.conf: not valid TOML: Expected"):
        read_file(tmp_path / "x.conf")


def test_number_is_taken_as_text_where_text_is_wanted_W32(tmp_path: Path) -> None:
    class Sample(Settings):
        env: dict[str, str]

    (tmp_path / "x.toml").write_text("env = { CUDA_VISIBLE_DEVICES = 0, SCALE = 0.5 }\n")
    built = build(Sample, [file_layer(tmp_path / "x.toml")])
    assert built.env == {"CUDA_VISIBLE_DEVICES": "0", "SCALE": "0.5"}


def test_variable_that_kubernetes_set_is_told_as_such_W32() -> None:
    class Sample(Settings):
        port: int = option(1, "A port.")

    with pytest.raises(SettingsError, match=r"environment S_PORT: 'port'.*tcp://10\.0\.0\.1:80.*enableServiceLinks"):
        build(Sample, [env_layer(Sample, "S_", {"S_PORT": "tcp://10.0.0.1:80"})])


def test_read_file_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_file(tmp_path / "absent.toml")
    with pytest.raises(SettingsError, match="Is a directory"):
        read_file(tmp_path)


def test_a_layer_takes_an_empty_file_for_an_empty_table(tmp_path: Path) -> None:
    for name in ("x.toml", "x.yaml"):
        (tmp_path / name).write_text("")
        assert file_layer(tmp_path / name).data == {}


def test_a_layer_is_a_table(tmp_path: Path) -> None:
    file = toml(tmp_path, "- 1\n", "x.yaml")
    with pytest.raises(SettingsError, match="must be a table of settings, not a list"):
        file_layer(file)


def test_an_unknown_flag_ends_with_usage_and_abbreviations_are_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--nonsense"], ["--verb"]):
        with pytest.raises(SystemExit) as caught:
            settings("--name", "x", *argv)
        assert caught.value.code == 2
    assert "--verb" in capsys.readouterr().err


def test_help_lists_every_flag_with_default_and_without_the_long_story(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        settings("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for setting in options(Sample, "SVC_SAMPLE_"):
        for flag in setting.flags:
            assert flag in text
    assert "Port to listen on. (default: 8000)" in text
    assert "100 % of it" in text
    assert "Not part of the help" not in text


def test_options_give_keys_flags_and_variables() -> None:
    found = {setting.key: setting for setting in options(Sample, "P_")}
    assert found["port"].env == ("P_PORT",)
    assert found["inner.delay_s"].flags == ("--delay",)
    assert found["inner.delay_s"].env == ("DELAY", "P_DELAY")
    assert found["inner.tries"].flags == ()
    assert found["inner.tries"].env == ()
    assert found["labels"].flags == found["labels"].env == ()
    assert found["verbose"].is_switch


def faults_of(model: type[Settings], layer: Layer) -> str:
    """Others may be missing, or the value out of its limits."""
    try:
        build(model, [layer])
    except SettingsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("prefix", SERVICES)
def test_every_variable_can_be_used_and_every_flag_has_one(prefix: str) -> None:
    variables: list[str] = []
    for setting in options(SERVICES[prefix], prefix):
        long = [flag[2:].replace("-", "_").upper() for flag in setting.flags if flag.startswith("--")]
        assert not long or f"{prefix}{long[0]}" in setting.env
        variables += setting.env
        for variable in setting.env:
            faults = faults_of(SERVICES[prefix], env_layer(SERVICES[prefix], prefix, {variable: "1"}))
            assert not re.search(r"valid (tuple|list|dictionary)", faults), variable
    assert len(variables) == len(set(variables))


def test_a_flag_of_a_section_has_a_variable_that_is_judged_like_it() -> None:
    assert settings("--name", "x", SVC_SAMPLE_DELAY="2").inner.delay_s == 2
    with pytest.raises(SettingsError, match=r"environment SVC_SAMPLE_DELAY: 'inner\.delay_s': input should be a valid"):
        settings("--name", "x", SVC_SAMPLE_DELAY="notanumber")


def test_build_merges_tables_key_by_key() -> None:
    below = Layer("below", {"name": "x", "labels": {"a": "1", "b": "2"}}, {})
    above = Layer("above", {"labels": {"b": "3"}}, {})
    assert build(Sample, [below, above]).labels == {"a": "1", "b": "3"}


def test_build_blames_the_layer_that_set_the_wrong_value() -> None:
    below = Layer("below", {"name": "x", "port": 1}, {})
    above = Layer("above", {"port": "no"}, {})
    with pytest.raises(SettingsError, match=r"^above: 'port'"):
        build(Sample, [below, above])


def test_env_layer_labels_the_variable() -> None:
    layer = env_layer(Sample, "P_", {"P_NAME": "x", "OTHER": "y"})
    assert layer.data == {"name": "x"}
    assert layer.labels == {("name",): "environment P_NAME"}


def test_a_long_value_is_cut_in_messages() -> None:
    with pytest.raises(SettingsError) as caught:
        build(Sample, [Layer("x", {"name": "A" * 500}, {})])
    assert len(str(caught.value)) < 200


def test_a_declared_default_may_be_made_anew() -> None:
    first: Any = Sample(name="a").labels
    second: Any = Sample(name="a").labels
    assert first is not second
