"""PURE: the effective full_config, and the environment and command of the server made from it (docs/contract.md 5)."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import PurePosixPath
from typing import Any

from babysitter.cbclient.modes import Mode
from common.wire.create import Job

TIME_LIMITS = ("job_time_sec", "job_timeout_s", "job_timeout")
"""How a runconfig may call the longest time of a job, in seconds; the first is what the server's own files say."""


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid over it, tables key by key."""
    result = dict(deepcopy(dict(base)))
    for name, value in over.items():
        before = result.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[name] = merged(before, value) if both else deepcopy(value)  # type: ignore[arg-type] # both are tables
    return result


def effective_config(
    full_config: Mapping[str, Any],
    *,
    replica: Mapping[str, Any],
    api: Mapping[str, Any],
    workdir: PurePosixPath,
    image: str | None,
    job: Job | None,
) -> dict[str, Any]:
    """What params.yaml and full_config.json hold.

    `replica` and `api` go over `full_config.replica` and `.api_config`; `runconfig` gets the image where it names none,
    what the request's `job` says, and a model_dir that lies under `workdir` unless it is absolute.
    """
    over = {name: table for name, table in (("replica", replica), ("api_config", api)) if table}
    config = merged(full_config, over)
    section = config.get("runconfig")
    runconfig = dict(section) if isinstance(section, Mapping) else {}
    if image is not None:
        runconfig.setdefault("cbcore_image", image)
    if job is not None:
        runconfig |= job_members(runconfig, job)
    runconfig["model_dir"] = str(workdir / str(runconfig.get("model_dir") or "model_dir"))
    return {**config, "runconfig": runconfig}


def job_members(runconfig: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """The members of `runconfig` that `job` decides: what it names itself wins, labels (`name=value`) one by one."""
    named, members = job.model_fields_set, dict[str, Any]()
    if "job_priority" in named or "job_priority" not in runconfig:
        members["job_priority"] = job.job_priority
    if "job_timeout_s" in named:
        names = [name for name in TIME_LIMITS if name in runconfig] or TIME_LIMITS[:1]
        members |= dict.fromkeys(names, job.job_timeout_s)
    if job.job_labels:
        before = runconfig.get("job_labels")
        labels = [*(before if isinstance(before, list) else ()), *job.job_labels]
        members["job_labels"] = list({str(label).partition("=")[0]: label for label in labels}.values())
    if "disable_scheduler" in named:
        members["disable_scheduler"] = job.disable_scheduler
    return members


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
    """The variables that the server is told its task in."""
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
