"""The variables of the launch scripts."""

from pathlib import Path

import pytest

from ctl.launcher import variables
from ctl.launcher.plan import AGENT, REGISTRY, ROUTER, BabysitterFile
from ctl.launcher.scripts import Script, Stop, up
from ctl.launcher.variables import Variables, WrongVariable


def test_port_that_kubernetes_set_is_told_as_such_W32() -> None:
    with pytest.raises(WrongVariable, match=r"for one named 'my-registry'\. Set enableServiceLinks: false in the pod"):
        Variables({"MY_REGISTRY_PORT": "tcp://10.0.0.1:18000"}).port("MY_REGISTRY_PORT", 1)


@pytest.mark.parametrize("value", ["0", "65536", "x", "-1", "1 2", "8000;rm", "99999999999999999999", "٣"])
def test_what_is_no_port_is_refused_with_its_name(value: str) -> None:
    with pytest.raises(WrongVariable) as error:
        Variables({"SOME_PORT": value}).port("SOME_PORT", 1)
    assert str(error.value) == f"SOME_PORT must be a port (1 to 65535), not '{value}'"


def test_a_port_may_have_leading_zeros_and_an_interval_a_fraction() -> None:
    values = Variables({"A": "08080", "B": "0.5", "EMPTY": ""})
    assert (values.port("A", 1), values.number("B", 1), values.number("C", 7), values.port("EMPTY", 9)) == (
        8080,
        0.5,
        7,
        9,
    )
    with pytest.raises(WrongVariable, match="B must be a number, not '5s'"):
        Variables({"B": "5s"}).number("B", 1)
    with pytest.raises(WrongVariable, match=r"B must be a whole number, not '0\.5'"):
        values.whole_number("B", 1)


@pytest.mark.parametrize(("value", "expected"), [("true", 1), ("FALSE", 0), ("", 1), ("0", 0)])
def test_a_switch_is_true_or_false(value: str, expected: int) -> None:
    assert Variables({"SWITCH": value}).is_true("SWITCH", default=True) == expected
    with pytest.raises(WrongVariable, match="SWITCH must be true or false, not 'maybe'"):
        Variables({"SWITCH": "maybe"}).is_true("SWITCH", default=True)


def test_flags_are_made_of_the_variables_that_are_set() -> None:
    values = Variables({"A": "1", "B": "", "C": "two words", "D": "none"})
    flags = values.flags({"--a": "A", "--b": "B", "--c": "C", "--d": "D", "--e": "E"})
    assert flags == ["--a", "1", "--c", "two words", "--d", ""]
    with pytest.raises(WrongVariable, match="ROUTER_MAX_ERRORS must be a number"):
        variables.service(ROUTER, Variables({"ROUTER_MAX_ERRORS": "few"}))


def test_services_follow_the_registry_of_this_node_unless_told_otherwise() -> None:
    router = variables.service(ROUTER, Variables({"REGISTRY_HOST": "::", "REGISTRY_PORT": "1800"}))
    assert router.args == ("--router-port", "8000", "--registry-url", "http://127.0.0.1:1800")
    agent = variables.service(AGENT, Variables({"AGENT_REGISTRY_URL": "none", "AGENT_WAIT_TIMEOUT": "7"}))
    assert agent.args == ("--port", "18100", "--host", "127.0.0.1", "--registry-url", "")
    assert agent.patience_s == 7
    registry = variables.service(REGISTRY, Variables({"REGISTRY_HOST": "10.0.0.1"}))
    assert (registry.url, registry.log) == ("http://10.0.0.1:18000", "registry_18000.log")


def test_an_announced_host_is_announced_where_the_server_listens_everywhere() -> None:
    values = Variables({"BABYSITTER_HOST": "10.0.0.7"})
    everywhere = variables.babysitter(values, BabysitterFile("f", "n", 8100, "0.0.0.0"), ())
    assert everywhere.args == ("--advertise-host", "10.0.0.7")
    one = variables.babysitter(values, BabysitterFile("f", "n", 8100), ())
    assert (one.args, one.url, one.ports) == (("--host", "10.0.0.7"), "http://127.0.0.1:8101", (8100, 8101))
    own = variables.babysitter(Variables({}), BabysitterFile("f", "n", 8100, "127.0.0.2"), ())
    assert own.url == "http://127.0.0.2:8101"


def test_the_block_of_launch_babysitter_makes_the_ancestors_command_line(tmp_path: Path) -> None:
    block = {"PORT": "8200", "MODEL_PATH": str(tmp_path), "NDEV": "4", "AWQ": "true", "REGISTRY_URL": "http://r"}
    part = up.template_part(Variables(block))
    served = ("--port", "8200", "--service-type", "InfiniLM", "--path", str(tmp_path))
    follows = ("--host", "localhost", "--registry-url", "http://r", "--router-url", "")
    assert part.args == (*served, "--ndev", "4", "--awq", *follows)
    assert part.serves == "infinilm-infinilm-8200 at http://127.0.0.1:8200"
    with pytest.raises(WrongVariable, match="MODEL_PATH: there is no '/gone'"):
        up.template_part(Variables({**block, "MODEL_PATH": "/gone"}))
    with pytest.raises(WrongVariable, match="CONFIG_FILE: there is no file"):
        up.template_part(Variables({**block, "SERVICE_TYPE": "InfiniLM-Rust"}))


def script(root: Path, **values: str) -> Script:
    return Script(root, {}, Variables(values), lambda file: BabysitterFile(file, "n", 8100))


def test_a_configuration_is_looked_for_as_given_then_in_the_project_then_in_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "config", elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)

    def found(name: str) -> str | None:
        return up.babysitter(script(project), name).config

    for place in (project / "config", project, elsewhere):
        (place / "one.toml").write_text("")
        assert found("one.toml") == str(place / "one.toml")
    assert found(str(project / "one.toml")) == str(project / "one.toml")
    assert found("config/one.toml") == str(project / "config" / "one.toml")
    for name in ("two.toml", "config"):
        with pytest.raises(Stop) as error:
            found(name)
        assert f"there is no file '{name}' here" in error.value.lines[0]
