"""The shapes of the ancestors' deployment files and create requests, in our own words: taken as they are."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import tomli
import yaml

from babysitter.agent.requests import parse_body, read_request, warnings
from babysitter.cbclient.params import effective_config
from babysitter.launch import make_command, make_plan
from babysitter.settings import BabysitterSettings, parse
from ctl.convert import RequestFlags, from_model_config

HEAD = """
# A comment with what the file is for
name = "{name}"
host = "0.0.0.0"
port = {port}

registry_url = "http://localhost:18000"
router_url = "http://localhost:8000"

[babysitter]
max_restarts = 10000
restart_delay = 5
heartbeat_interval = 30

[backend]
type = "command"
"""
ENGINE = """command = "{python}"
args = [
  "{folder}/inference_server.py",
  "--metax",
  "--model_path", "/models/m",
  "--max_batch_size", "8",
  "--tp", "{devices}",
  "--temperature", "1.0",
  "--host", "0.0.0.0",
  "--port", "{port}",{more}
]
work_dir = "{folder}"

[backend.env]
PATH = "{folder}/bin:/usr/bin:/bin"
PYTHONPATH = "{folder}/python:{folder}/core/python"
LD_LIBRARY_PATH = "/opt/vendor/lib:/opt/vendor/ompi/lib"
XMAKE_ROOT = "y"
"""
CACHED = ' "--cache_type", "{cache}", # why\n "--max_cache_len", "16384",'
METADATA = """
[metadata]
cache_type = "{cache}"
static = true
"""
SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    # name: (host, metadata and device of the file), the file
    "engine, one of two on a host": ({}, HEAD + ENGINE + 'HPCC_VISIBLE_DEVICES = "1"\n'),
    "engine over four devices": (
        {"devices": "4"},
        HEAD + ENGINE + '# which devices is told here\nHPCC_VISIBLE_DEVICES = "4,5,6,7"\n',
    ),
    "engine whose devices the container chooses": ({}, HEAD + ENGINE),
    "paged cache": ({"cache": "paged"}, HEAD + ENGINE.replace("{more}", CACHED) + METADATA),
    "static cache": ({"cache": "static"}, HEAD + ENGINE.replace("{more}", CACHED) + METADATA),
    "embeddings": (
        {},
        HEAD
        + 'command = "{python}"\nargs = ["{folder}/embeddings_server.py"]\nwork_dir = "{folder}"\n[backend.env]\nA = "b"\n',
    ),
    "mock behind a name on PATH": (
        {},
        HEAD
        + 'command = "python3"\nargs = [\n"{folder}/mock.py",\n"--port", "{port}",\n"--models", "m"\n]\nwork_dir = "{folder}"\n',
    ),
    "vllm by its command, an inline table": (
        {"host": "localhost"},
        HEAD.replace('host = "0.0.0.0"', 'host = "localhost"').replace('router_url = "http://localhost:8000"', "")
        + 'command = "python3"\nargs = ["-m", "vllm.entrypoints.openai.api_server", "--model", "/m", "--port", "{port}"]\n'
        'work_dir = "{folder}"\nenv = {{ CUDA_VISIBLE_DEVICES = "0", VLLM_WORKER_MULTIPROC_METHOD = "spawn" }}\n',
    ),
}


def written(folder: Path, shape: str) -> tuple[Path, dict[str, Any]]:
    """The file of that shape, and what any reader of TOML makes of it."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    given, text = SHAPES[shape]
    words = {"name": "master-9g_8b", "port": "8100", "devices": "1", "cache": "", "python": python, "folder": folder}
    filled = text.replace("{more}", "").format(**words | given)
    file = folder / "node.toml"
    file.write_text(filled)
    return file, tomli.loads(filled)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_deployment_file_gives_its_command_word_for_word(tmp_path: Path, shape: str) -> None:
    file, told = written(tmp_path, shape)
    settings = parse(["--config-file", str(file)], {})
    assert (settings.name, settings.host, settings.port) == (told["name"], told["host"], 8100)
    assert settings.registry_url == ("http://localhost:18000",)
    assert settings.router_url == told.get("router_url")
    assert settings.metadata == told.get("metadata", {})
    restarts = settings.babysitter
    assert (restarts.max_restarts, restarts.restart_delay_s, restarts.heartbeat_interval_s) == (10_000, 5.0, 30.0)
    backend = told["backend"]
    made = make_command(settings, make_plan(settings), {"PATH": "/usr/bin:/bin", "HOME": "/root"})
    assert made.argv[1:] == tuple(backend["args"])
    assert Path(made.argv[0]).name == Path(backend["command"]).name
    assert made.cwd == tmp_path
    assert dict(made.env) == {"PATH": "/usr/bin:/bin", "HOME": "/root", **backend.get("env", {})}


def test_the_containers_flags_stand_over_a_deployment_file(tmp_path: Path) -> None:
    file, _ = written(tmp_path, "engine whose devices the container chooses")
    flags = ["--host", "192.0.2.9", "--registry-url", "http://192.0.2.1:18000", "--router-url", "http://192.0.2.1:8000"]
    settings = parse(["--config-file", str(file), *flags], {})
    assert (settings.host, settings.registry_url) == ("192.0.2.9", ("http://192.0.2.1:18000",))
    assert settings.router_url == "http://192.0.2.1:8000"


MODEL = """
runconfig:
  transfer_processes: 8
  job_priority: p2
  job_labels:
  - prp=stream
  - etime=2h
  job_time_sec: 172800
  model_dir: model_dir
  num_csx: 8
  wsc_log_level: {WCLT020: INFO}
  disable_version_check: true
api_config:
  workers: 10
  logging_config:
    version: 1
    formatters:
      default:
        (): uvicorn.logging.DefaultFormatter
        fmt: '%(asctime)s - %(levelprefix)s %(message)s'
    loggers:
      ? ''
      : handlers: [root]
replica:
  concurrent_prompts: 10
  tbm_timeout_cumulative_ns: 10000000000
model:
  name: some-70b
  G: 3
  R: {decoders: 10}
  draft_model: {name: some-1b-draft, D: {decoders: 1}}
fetch_remote_logs: false
"""
TAG = "260101-inference-202601010000-1-abcdef01"


def example() -> dict[str, Any]:
    """A request as the release server's published example has it: tag twice, uv, labels that are null."""
    return {
        "server_mode": "replica",
        "model_name": "some-70b",
        "placement": {"multibox": "box1", "namespace": "inf-integ", "app_tag": TAG},
        "cbclient_config": {"app_tag": TAG, "use_uv": True},
        "full_config": yaml.safe_load(MODEL),
        "job": {"job_priority": "p2", "job_timeout_s": 172800, "job_labels": None},
        "wait_for_ready": True,
        "run_diagnostics": False,
    }


def read(body: Mapping[str, Any]) -> Any:
    return read_request(parse_body(json.dumps(body).encode()), wheel_dirs=(), model_dirs=())


def test_the_published_example_is_taken_as_it_is() -> None:
    found = read(example())
    assert found.full_config == example()["full_config"]
    assert (found.app_tag, found.job.job_timeout_s, found.job.job_labels) == (TAG, 172800, ())
    assert warnings(found, example()) == []


def test_the_example_of_the_readme_without_job_and_client_is_taken_as_it_is() -> None:
    short = {name: value for name, value in example().items() if name not in ("job", "cbclient_config")}
    short["placement"]["app_tag"] = "0.0.0+build.1b9c30c813"
    found = read(short)
    assert (found.app_tag, found.job) == ("0.0.0+build.1b9c30c813", None)


def test_a_model_configuration_becomes_the_published_example() -> None:
    chosen = RequestFlags(app_tag=TAG, multibox="box1", namespace="inf-integ")
    made = from_model_config(yaml.safe_load(MODEL), chosen)
    labels = made["job"].pop("job_labels")
    assert labels == ["prp=stream", "etime=2h"]
    expected = example()
    del expected["job"]["job_labels"]
    assert made == expected
    read(made)


def test_flags_of_from_yaml_win_over_the_file_in_params_yaml() -> None:
    chosen = RequestFlags(app_tag=TAG, priority="p0", timeout_s=60, labels=("prp=mine", "x=y"))
    request = read(from_model_config(yaml.safe_load(MODEL), chosen))
    workdir = PurePosixPath("/w")
    config = effective_config(request, workdir=workdir, image=None)
    asked = {"job_priority": "p0", "job_time_sec": 60, "job_labels": ["prp=mine", "etime=2h", "x=y"]}
    assert {name: config["runconfig"][name] for name in asked} == asked


def test_settings_of_a_file_are_the_settings_of_the_flags() -> None:
    """What a file says and the flags say is one thing: the guide has both."""
    flags = parse("-n a -p 8001 --service-type mock --model-name m --max-restarts 3".split(), {})
    table = {"name": "a", "port": 8001, "babysitter": {"max_restarts": 3}, "backend": {"type": "mock", "models": ["m"]}}
    assert flags == BabysitterSettings.model_validate(table)
