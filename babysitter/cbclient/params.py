"""PURE: the effective full_config, and the environment and command of the server made from it (docs/contract.md 5)."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import PurePosixPath
from typing import Any

from babysitter.cbclient.modes import Mode
from common.wire.base import JsonObject
from common.wire.create import CreateRequest, Job

TIME_LIMITS = ("job_time_sec", "job_timeout_s", "job_timeout")
"""How a runconfig may call the longest time of a job, in seconds; the first is what the server's own files say."""


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> JsonObject:
    """`base` with `over` laid over it, tables key by key."""
    result = dict(deepcopy(dict(base)))
    for name, value in over.items():
        before = result.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[name] = merged(before, value) if both else deepcopy(value)  # type: ignore[arg-type] # both are tables
    return result


def effective_config(request: CreateRequest, *, workdir: PurePosixPath, image: str | None) -> JsonObject:
    """What params.yaml and full_config.json hold.

    The request's `replica_config` goes over `full_config.replica` and `.api_config`; `runconfig` gets the image where it
    names none, what the request's `job` says, and a model_dir that lies under `workdir` unless it is absolute.
    """
    own = request.replica_config
    tables = {"replica": own.replica_config, "api_config": own.api_config}
    config = merged(request.full_config, {name: table for name, table in tables.items() if table})
    section = config.get("runconfig")
    runconfig = dict(section) if isinstance(section, Mapping) else {}
    if image is not None:
        runconfig.setdefault("cbcore_image", image)
    if request.job is not None:
        _lay_over(runconfig, request.job)
    runconfig["model_dir"] = str(workdir / str(runconfig.get("model_dir") or "model_dir"))
    return {**config, "runconfig": runconfig}


def _lay_over(runconfig: JsonObject, job: Job) -> None:
    """Put what `job` names itself over `runconfig`, labels (`name=value`) one by one."""
    named = job.model_fields_set
    if "job_priority" in named or "job_priority" not in runconfig:
        runconfig["job_priority"] = job.job_priority
    if "job_timeout_s" in named:
        names = [name for name in TIME_LIMITS if name in runconfig] or TIME_LIMITS[:1]
        runconfig |= dict.fromkeys(names, job.job_timeout_s)
    if job.job_labels:
        before = runconfig.get("job_labels")
        labels = [*(before if isinstance(before, list) else ()), *job.job_labels]
        runconfig["job_labels"] = list({str(label).partition("=")[0]: label for label in labels}.values())
    if "disable_scheduler" in named:
        runconfig["disable_scheduler"] = job.disable_scheduler


def server_flags(mode: Mode, *, image: str | None, skip_version_check: bool) -> list[str]:
    """The words after the fixed part of the command."""
    image_flag = ["--cbcore", image] if mode.image and image is not None else []
    return [*image_flag, *(["--disable_version_check"] if skip_version_check else []), *mode.flags]


def server_environment(
    *,
    model_name: str,
    workdir: str,
    multibox: str | None,
    namespace: str,
    mode: Mode,
    job_priority: str,
    app_tag: str | None,
    port: int,
    full_config: str,
) -> dict[str, str]:
    """The environment variables that describe the server's task."""
    return {
        "MODEL_NAME": model_name,
        "WORKDIR": workdir,
        "MULTIBOX": multibox or "",
        "NAMESPACE": namespace,
        "MOCK_BACKEND": "true" if mode.is_mock else "false",
        "JOB_PRIORITY": job_priority,
        "APP_TAG": app_tag or "",
        "PORT": str(port),
        "FULL_CONFIG_PATH": full_config,
    }
