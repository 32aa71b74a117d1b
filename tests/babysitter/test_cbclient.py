"""App tags, wheels, images, requirements and parameters of a client: tables."""

import errno
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import aiohttp
import pytest

from babysitter.assemble import make_addresses, make_probe, make_spec
from babysitter.attempt import ServerCommand
from babysitter.cbclient import wheels
from babysitter.cbclient.environments import Environments
from babysitter.cbclient.modes import MODES
from babysitter.cbclient.packages import (
    EnvironmentSpec,
    RequirementError,
    check_custom,
    fault_of,
    key,
    pin,
    split_index,
)
from babysitter.cbclient.params import effective_config, merged, server_flags
from babysitter.cbclient.request import CheckedRequest, load
from babysitter.cbclient.server import make_command
from babysitter.cbclient.versions import TagError, has_client_package, image, image_tag, version_of, wheel_names
from babysitter.cbclient.wheels import Roots, WheelError
from babysitter.client_parts import NO_IMAGE, make_rules, warnings_of
from babysitter.settings import BabysitterSettings, parse
from babysitter.spec import DeployError
from common.clock import SystemClock
from common.exits import ConfigurationError
from tests.babysitter.stand_in.wheels import make_wheel


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ("260215-inference-202602201519-2373-9999f993", "260215+inference.202602201519.2373.9999f993"),
        ("build-1b83940b24", "0.0.0+1b83940b24"),
        ("0.0.0+build.1b9c30c813", "0.0.0+build.1b9c30c813"),
        ("0.0.0-build-1b9c30c813", "0.0.0+build.1b9c30c813"),
        ("2.3.0.post1", "2.3.0.post1"),
        ("2.3.0", "2.3.0"),
        ("v2.3.0", "2.3.0"),
        ("260113.3-inference-2026-2384-8fb6d540", "260113.3+inference.2026.2384.8fb6d540"),
        ("release-2.5.0-abc", "0.0.0+2.5.0.abc"),
        ("nightly-20260101", "0.0.0+20260101"),
        ("v2.3.0-rc-1", "2.3.0+rc.1"),
        ("260215", "260215"),
    ],
)
def test_version_of_a_tag(tag: str, version: str) -> None:
    assert version_of(tag) == version


@pytest.mark.parametrize("tag", ["nightly", "build", "build-", "x y-z", "", "-", "1.0-a/b", "2.x+y", "build-ä"])
def test_tag_without_a_version_is_an_error_that_names_it(tag: str) -> None:
    with pytest.raises(TagError) as caught:
        version_of(tag)
    assert repr(tag) in str(caught.value)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("2.3.0", True),
        ("v2.3.0", True),
        ("260113.3-inference-1", True),
        ("build-1b83940b24", False),
        ("release-2.5.0", False),
        ("nightly-1", False),
        ("260215-inference-1", False),
    ],
)
def test_only_dotted_versions_have_a_client_package(tag: str, expected: bool) -> None:  # noqa: FBT001 - a row
    assert has_client_package(tag) is expected


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("0.0.0+build.1b9c30c813", "build-1b9c30c813"),
        ("0.0.0-build-1b9c30c813", "build-1b9c30c813"),
        ("build-1b9c30c813", "build-1b9c30c813"),
        ("v2.3.0", "v2.3.0"),
        ("2.3.0", "2.3.0"),
        ("260113.3-inference-202601-2384-8fb6d540", "inference-202601-2384-8fb6d540"),
        ("260215-inference-202602201519-2373-9999f993", "260215-inference-202602201519-2373-9999f993"),
        ("260215+inference.202602201519.2373", "260215-inference-202602201519-2373"),
        ("release-2.5.0", "release-2.5.0"),
    ],
)
def test_image_tag_of_a_tag(tag: str, expected: str) -> None:
    assert image_tag(tag) == expected
    assert "+" not in image("registry.example/x/", tag)
    assert image("registry.example/x/", tag) == f"registry.example/x/cbcore:{expected}"


def test_wheel_names_are_the_contracts() -> None:
    names = wheel_names("260215+inference.2026")
    assert names[0] == "cerebras_appliance-260215.inference.2026-cp311-cp311-linux_x86_64.whl"
    assert "cerebras_appliance-260215.inference.2026-none-any.whl" in names


def test_wheels_are_searched_in_order_and_newest_first_W22(tmp_path: Path) -> None:
    roots = Roots(tmp_path / "ws", tmp_path / "cache", tmp_path / "stage")
    name = wheel_names("1.0+x")[0]
    places = ["ws/build/appliance", "cache/260215", "cache/260101", "stage/a/b/c/components/cbcore"]
    places += ["stage/a/b/c/components", "cache"]
    paths = []
    for age, place in enumerate(places):
        path = tmp_path / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

        os.utime(path, (1_000_000 - age, 1_000_000 - age))
        paths.append(path)
    for path in paths:
        assert wheels.find(roots, [name]) == path
        path.unlink()
    assert wheels.find(roots, [name]) is None
    assert wheels.find(Roots(), [name]) is None


def test_misnamed_wheel_is_staged_under_the_name_of_its_metadata(tmp_path: Path) -> None:
    built = make_wheel(tmp_path / "w", "cerebras_appliance", "1.0+x.y", file_version="1.0.x.y")
    assert wheels.version_in(built) == "1.0+x.y"
    staged = wheels.stage(built, tmp_path / "staged")
    assert staged.name == "cerebras_appliance-1.0+x.y-py3-none-any.whl"
    assert staged.read_bytes() == built.read_bytes()


def test_no_wheel_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    path.write_bytes(b"no zip")
    with pytest.raises(WheelError, match=r"x\.whl: not a wheel"):
        wheels.version_in(path)


def test_wheel_of_a_request_must_lie_where_wheels_may_lie_E4(tmp_path: Path) -> None:
    inside, outside = tmp_path / "ok" / "a.whl", tmp_path / "b.whl"
    inside.parent.mkdir()
    inside.touch()
    outside.touch()
    (tmp_path / "ok" / "link.whl").symlink_to(outside)
    assert wheels.check_allowed(inside, [tmp_path / "ok"]) == inside.resolve()
    for path in (outside, tmp_path / "ok" / "link.whl", tmp_path / "ok" / ".." / "b.whl", tmp_path / "ok" / "none.whl"):
        with pytest.raises(WheelError):
            wheels.check_allowed(path, [tmp_path / "ok"])


@pytest.mark.parametrize("text", ["numpy", "numpy==1.26", "numpy[extra]>=1,<2", "x; python_version < '3.12'"])
def test_custom_requirement_that_names_a_package_is_taken_E5(text: str) -> None:
    assert check_custom(f" {text} ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--index-url=http://evil",
        "--extra-index-url http://evil",
        "-r /etc/passwd",
        "-e .",
        "git+https://evil/x",
        "x @ file:///etc/passwd",
        "x @ https://evil/x.whl",
        "/etc/passwd",
        "./x.whl",
        "x\n--index-url=http://evil",
        "http://evil/x.whl",
    ],
)
def test_custom_requirement_that_is_anything_else_is_refused_E5(text: str) -> None:
    with pytest.raises(RequirementError) as caught:
        check_custom(text)
    assert repr(text) in str(caught.value)


def names_of(spec: EnvironmentSpec) -> list[tuple[str, tuple[str, ...], bool]]:
    return [(step.name, step.requirements or step.wheels, step.dependencies) for step in spec.steps()]


def test_steps_without_a_local_wheel() -> None:
    assert names_of(EnvironmentSpec("2.3.0", custom=("numpy",))) == [
        ("client", ("cerebras-pytorch===2.3.0",), True),
        ("server", ("cerebras-inference-api-server===2.3.0", "cerebras-inference-compiler===2.3.0"), True),
        ("appliance", ("cerebras_appliance===2.3.0", "cerebras_inference_workload===2.3.0"), False),
        ("custom", ("numpy",), True),
    ]


def test_steps_with_a_local_wheel_and_no_client_package() -> None:
    assert names_of(EnvironmentSpec("0.0.0+x", client=False, appliance_wheel="/w.whl")) == [
        ("appliance wheel", ("/w.whl",), False)
    ]


def test_given_client_wheel_replaces_the_package() -> None:
    assert names_of(EnvironmentSpec("2.3.0", client_wheel="/c.whl"))[0] == ("client", ("/c.whl",), True)


def test_a_client_wheel_of_another_build_is_bound_by_no_pin_and_the_rest_keeps_its_own_W22() -> None:
    own = EnvironmentSpec("2.3.0", client_wheel="/c.whl", client_matches=False)
    client, server, _appliance, again = own.steps()
    assert (again.wheels, again.dependencies) == (("/c.whl",), False)
    assert own.constraints(client) == []
    assert own.constraints(server) == ["cerebras_appliance===2.3.0", "cerebras_inference_workload===2.3.0"]
    same = EnvironmentSpec("2.3.0", client_wheel="/c.whl")
    assert len(same.constraints(same.steps()[0])) == 4  # of what it needs; its own version is the file's


def test_pins_are_exact_and_in_the_indexs_spelling() -> None:
    assert pin("x", "2.3.0") == "x===2.3.0"
    assert pin("x", "2.3.0+Build-01") == "x===2.3.0+build.1"


def test_key_changes_with_everything_that_matters() -> None:
    base = key(EnvironmentSpec("1.0"), python="3.11", index="i", hashes=())
    others = [
        key(EnvironmentSpec("1.1"), python="3.11", index="i", hashes=()),
        key(EnvironmentSpec("1.0", custom=("x",)), python="3.11", index="i", hashes=()),
        key(EnvironmentSpec("1.0", client=False), python="3.11", index="i", hashes=()),
        key(EnvironmentSpec("1.0"), python="3.12", index="i", hashes=()),
        key(EnvironmentSpec("1.0"), python="3.11", index="j", hashes=()),
        key(EnvironmentSpec("1.0"), python="3.11", index="i", hashes=("h",)),
    ]
    assert len({base, *others}) == 7
    assert base == key(EnvironmentSpec("1.0"), python="3.11", index="i", hashes=())


@pytest.mark.parametrize(
    ("url", "bare", "login"),
    [
        ("https://h/root/+simple/", "https://h/root/+simple/", None),
        ("https://u:p%40@h:8443/x?y=1", "https://h:8443/x?y=1", ("h", "u", "p%40")),
        ("http://u@[::1]:3141/x", "http://[::1]:3141/x", ("::1", "u", "")),
    ],
)
def test_credentials_are_taken_out_of_the_index(url: str, bare: str, login: tuple[str, str, str] | None) -> None:
    index = split_index(url)
    assert (index.url, index.login) == (bare, login)


@pytest.mark.parametrize(
    ("output", "word", "retry"),
    [
        ("OSError: [Errno 28] No space left on device", "no_space", False),
        ("WARNING: ... NewConnectionError\nERROR: No matching distribution found for x", "index_unreachable", True),
        ("503 Server Error: Service Unavailable", "index_unreachable", True),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE", "hash_mismatch", True),
        ("ERROR: No matching distribution found for x===1", "not_found", False),
        ("ERROR: ResolutionImpossible", "conflict", False),
        ("what", "failed", True),
    ],
)
def test_faults_of_pip_are_told_in_a_word_B15(output: str, word: str, retry: bool) -> None:  # noqa: FBT001 - a row
    fault = fault_of(output)
    assert (fault.word, fault.retry) == (word, retry)


def test_merged_lays_tables_over_tables() -> None:
    base = {"a": {"b": 1, "c": [1]}, "d": 1}
    assert merged(base, {"a": {"b": 2, "x": {}}, "d": {"e": 1}}) == {"a": {"b": 2, "c": [1], "x": {}}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": [1]}, "d": 1}


def effective(full: dict[str, Any], **changes: Any) -> dict[str, Any]:
    image = changes.pop("image", "r/cbcore:t")
    request = CheckedRequest.model_validate({**MINIMAL, "full_config": full, **changes})
    return effective_config(request, workdir=PurePosixPath("/w"), image=image)


@pytest.mark.parametrize(
    ("runconfig", "expected"),
    [
        (None, {"cbcore_image": "r/cbcore:t", "model_dir": "/w/model_dir"}),
        ({"model_dir": "m/x"}, {"model_dir": "/w/m/x", "cbcore_image": "r/cbcore:t"}),
        ({"model_dir": "/abs", "cbcore_image": "own"}, {"model_dir": "/abs", "cbcore_image": "own"}),
        ({"job_priority": "p1"}, {"job_priority": "p1", "cbcore_image": "r/cbcore:t", "model_dir": "/w/model_dir"}),
    ],
)
def test_runconfig_gets_image_and_model_dir_where_it_has_none(
    runconfig: dict[str, Any] | None, expected: dict[str, Any]
) -> None:
    full = {} if runconfig is None else {"runconfig": runconfig}
    assert effective(full)["runconfig"] == expected


LABELS = ["team=inference", "etime=2h"]


@pytest.mark.parametrize(
    ("runconfig", "job", "expected"),
    [
        ({"job_priority": "p1"}, {"job_priority": "p0"}, {"job_priority": "p0"}),
        ({"job_priority": "p1"}, {"job_timeout_s": 9}, {"job_priority": "p1", "job_time_sec": 9}),
        ({}, {"job_timeout_s": 9}, {"job_priority": "p2", "job_time_sec": 9}),
        ({"job_time_sec": 5}, {"job_timeout_s": 9}, {"job_priority": "p2", "job_time_sec": 9}),
        ({"job_timeout": 5}, {"job_timeout_s": 9}, {"job_priority": "p2", "job_timeout": 9}),
        ({"job_time_sec": 5}, {"job_priority": "p2"}, {"job_priority": "p2", "job_time_sec": 5}),
        ({}, {"job_labels": ["a=b"]}, {"job_priority": "p2", "job_labels": ["a=b"]}),
        (
            {"job_labels": LABELS},
            {"job_labels": ["a=b", "etime=9h"]},
            {"job_priority": "p2", "job_labels": ["team=inference", "etime=9h", "a=b"]},
        ),
        ({"job_labels": LABELS}, {"job_labels": []}, {"job_priority": "p2", "job_labels": LABELS}),
        ({}, {"disable_scheduler": True}, {"job_priority": "p2", "disable_scheduler": True}),
        (
            {"disable_scheduler": True},
            {"disable_scheduler": False},
            {"job_priority": "p2", "disable_scheduler": False},
        ),
        ({"disable_scheduler": True}, {}, {"job_priority": "p2", "disable_scheduler": True}),
    ],
)
def test_what_the_requests_job_says_itself_wins_over_the_runconfig_W41(
    runconfig: dict[str, Any], job: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = effective({"runconfig": runconfig}, job=job, image=None)
    assert config["runconfig"] == {**expected, "model_dir": "/w/model_dir"}


@pytest.mark.parametrize(
    ("mode", "mocked"),
    [("api_gateway", True), ("api_gateway_mock", True), ("replica", False), ("platform_workload", False)],
)
def test_a_gateway_is_started_with_the_mocked_backend_that_its_request_asks_for(
    tmp_path: Path,
    mode: str,
    mocked: bool,  # noqa: FBT001 - a row
) -> None:
    made = command_of(tmp_path, {"server_mode": mode, "gateway_config": {"mock_backend": True}})
    assert list(made.argv).count("--mock_backend") == mocked
    assert made.env["MOCK_BACKEND"] == str(mocked).lower()
    assert made.stdout == tmp_path / f"{MODES[mode].logs}_stdout.log"


def test_replica_config_goes_over_full_config() -> None:
    full = {"replica": {"a": 1, "b": 2}, "api_config": {"workers": 4}, "model": {"x": 1}}
    config = effective(full, replica_config={"replica_config": {"b": 3}, "api_config": {"workers": 8}})
    assert config["replica"] == {"a": 1, "b": 3}
    assert config["api_config"] == {"workers": 8}
    assert config["model"] == {"x": 1}


@pytest.mark.parametrize(
    ("mode", "flags"),
    [
        ("inference", ["--cbcore", "i"]),
        ("replica", ["--cbcore", "i"]),
        ("replica_mock", ["--cbcore", "i", "--mock_backend"]),
        ("api_gateway", ["--api_gateway"]),
        ("api_gateway_mock", ["--api_gateway", "--mock_backend"]),
        ("platform_workload", ["--platform_workload"]),
        ("platform_workload_mock", ["--platform_workload", "--mock_backend"]),
    ],
)
def test_flags_of_every_mode(mode: str, flags: list[str]) -> None:
    assert server_flags(MODES[mode], image="i", skip_version_check=False) == flags
    assert "--disable_version_check" in server_flags(MODES[mode], image=None, skip_version_check=True)


@pytest.mark.parametrize(("mode", "logs"), [("inference", "replica"), ("replica", "replica"), ("api_gateway",) * 2])
def test_output_files_are_named_after_the_mode(mode: str, logs: str) -> None:
    assert MODES[mode].logs == logs


MINIMAL = {"server_mode": "replica", "model_name": "m", "placement": {"app_tag": "2.3.0"}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"server_mode": "x"}, "server_mode"),
        ({"model_name": ""}, "model_name"),
        ({"cbclient_config": {}}, "cbclient_config"),
        ({"cbclient_config": {"app_tag": "nonsense"}}, "cbclient_config.app_tag"),
        ({"cbclient_config": {"app_tag": "2.3.0", "custom_requirements": ["-r x"]}}, "custom_requirements"),
        ({"placement": {"multibox": ""}}, "placement.multibox"),
        ({"timeouts": {"readiness_timeout_s": 0}}, "timeouts.readiness_timeout_s"),
        ({"job": {"job_timeout_s": "x"}}, "job.job_timeout_s"),
    ],
)
def test_wrong_request_names_file_and_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:

    path = tmp_path / "request.json"
    path.write_text(json.dumps({**MINIMAL, **change}))
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert field in str(caught.value)


def command_of(workdir: Path, changes: dict[str, Any]) -> ServerCommand:
    entry = workdir / "cbclient/lib/python3.11/site-packages/cerebras/inference/workload/main.py"
    entry.parent.mkdir(parents=True)
    entry.write_text("")
    return make_command(
        CheckedRequest.model_validate({**MINIMAL, **changes}),
        make_rules(parse(["-p", "8001", "--command", "true"], {})),
        workdir=workdir,
        port=8001,
        spec=EnvironmentSpec(None),
        image=None,
        skip_version_check=False,
        environ={},
    )


@pytest.mark.parametrize(
    ("job", "priority"),
    [(None, "p2"), ({"job_priority": "p0"}, "p0"), ({"job_timeout_s": 9}, "p2")],
)
def test_the_server_is_told_params_yaml_and_the_requests_own_priority_W22(
    tmp_path: Path, job: dict[str, Any] | None, priority: str
) -> None:
    made = command_of(tmp_path, {"job": job, "full_config": {"runconfig": {"job_priority": "p1"}}})
    assert made.env["FULL_CONFIG_PATH"] == str(tmp_path / "params.yaml")
    assert made.env["JOB_PRIORITY"] == priority


@pytest.mark.parametrize(
    ("change", "client", "told"),
    [
        ({}, {}, (NO_IMAGE,)),
        ({}, {"image_registry": "r"}, ()),
        ({"placement": {}}, {}, ()),
        ({"server_mode": "api_gateway"}, {}, ()),
        ({"full_config": {"runconfig": {"cbcore_image": "r/cbcore:t"}}}, {}, ()),
    ],
)
def test_a_request_with_a_tag_and_no_image_registry_is_warned_of_W41(
    change: dict[str, Any], client: dict[str, Any], told: tuple[str, ...]
) -> None:
    given = {"port": 8001, "backend": {"type": "mock", "models": ["m"]}, "cbclient": client}
    settings = BabysitterSettings.model_validate(given)
    assert warnings_of(CheckedRequest.model_validate({**MINIMAL, **change}), settings) == told


def test_defaults_of_a_request_are_the_contracts() -> None:
    request = CheckedRequest.model_validate(MINIMAL)
    assert request.placement.namespace == "inf-integ"
    assert (request.app_tag, request.job_priority, request.full_config) == ("2.3.0", None, {})


@pytest.mark.parametrize(
    ("timeouts", "port_s", "poll_s", "look_s"),
    [
        (None, None, 0.5, 7.0),
        ({"readiness_timeout_s": 9}, None, 0.5, 7.0),
        ({"port_discovery_timeout_s": 60, "poll_interval_s": 3, "health_check_timeout_s": 11}, 60.0, 3.0, 11.0),
    ],
)
async def test_timeouts_that_a_request_names_win_over_the_settings(
    tmp_path: Path, timeouts: dict[str, float] | None, port_s: float | None, poll_s: float, look_s: float
) -> None:
    home = tmp_path / "root" / "abc123def456"
    home.mkdir(parents=True)
    asked = {"server_mode": "replica", "model_name": "m", "placement": {"app_tag": "build-1"}, "timeouts": timeouts}
    (home / "request.json").write_text(json.dumps(asked))
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"probes": {"start_interval_s": 0.5, "timeout_s": 7}}))
    settings = parse(["--config-file", str(file), "--replica-dir", str(home), "--port", "20999"], {})
    spec = make_spec(settings, environ={}, clock=SystemClock(), mark="m")
    async with aiohttp.ClientSession() as session:
        probe = make_probe(settings, spec, session)
    assert (spec.policy.port_timeout_s, spec.start_interval_s, probe.timeout_s) == (port_s, poll_s, look_s)
    assert spec.interval_s == settings.probes.interval_s


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "::", "10.0.0.5"])
def test_server_is_asked_where_it_always_listens_whatever_the_nodes_address_is(tmp_path: Path, host: str) -> None:
    home = tmp_path / "abc123def456"
    home.mkdir()
    (home / "request.json").write_text(json.dumps(MINIMAL))
    argv = ["--port", "20999", "--host", host, "--advertise-host", "n1"]
    client = make_addresses(parse([*argv, "--replica-dir", str(home)], {}), None)
    assert (client.local, client.bind, client.endpoint) == ("127.0.0.1", host, "n1")
    other = make_addresses(parse([*argv, "-n", "s", "--command", "x"], {}), None)
    assert (other.local == "127.0.0.1") is (host == "0.0.0.0")
    assert (other.local == "localhost") is (host == "localhost")


@pytest.mark.parametrize(
    ("number", "word"), [(errno.ENOSPC, "no_space"), (errno.EDQUOT, "no_space"), (errno.EIO, "failed")]
)
async def test_disk_that_refuses_between_two_stages_fails_the_deployment_B17(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, word: str
) -> None:
    def refuse(_environments: Environments, _key: str) -> None:
        raise OSError(number, os.strerror(number))

    home = tmp_path / "root" / "abc123def456"
    home.mkdir(parents=True)
    (home / "request.json").write_text(json.dumps(MINIMAL))
    settings = parse(["--replica-dir", str(home), "--port", "20999"], {})
    deployer = make_spec(settings, environ=dict(os.environ), clock=SystemClock(), mark="m").deployer
    assert deployer is not None
    monkeypatch.setattr(Environments, "building", refuse)
    with pytest.raises(DeployError, match=rf"^deploy: {word}: .*{os.strerror(number)}"):
        await deployer.deploy(lambda _stage: None)
