"""PURE. A model configuration becomes a create request; flags are laid over a request."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from common.wire.words import ServerMode

MODES = (*(mode.value for mode in ServerMode), "catalog")
"""Those of requests; the last is the old converter's, for services that know it."""
JOB = {"job_priority": "p2", "job_timeout_s": 86_400, "job_labels": None}
"""What a configuration says that says nothing of its job, as the old converter wrote it."""
TIMEOUT_KEYS = ("job_timeout_s", "job_time_sec", "job_timeout")
"""How configurations call the longest time of a job; the first that is there counts."""


class UnusableConfig(ValueError):
    """The configuration cannot become a request; the text names the key and the remedy."""


@dataclass(frozen=True, slots=True)
class RequestFlags:
    """What flags say; None leaves it to the file. `labels` are added to the file's."""

    server_mode: str | None = None
    model_name: str | None = None
    app_tag: str | None = None
    multibox: str | None = None
    namespace: str | None = None
    node: str | None = None
    priority: str | None = None
    timeout_s: int | None = None
    labels: Sequence[str] = field(default_factory=tuple)
    use_uv: bool | None = None
    wait_for_ready: bool | None = None
    run_diagnostics: bool | None = None
    request_id: str | None = None


def from_model_config(config: Mapping[str, Any], chosen: RequestFlags) -> dict[str, Any]:
    """The create request of a model configuration, which it carries whole as `full_config`.

    The job's priority, timeout and labels are taken from `runconfig`. It has the members that the release server's own
    converter gave it, with the same values where nothing is said.

    Raises:
        UnusableConfig: It is of another shape.
    """
    runconfig = _table(config, "runconfig")
    model = _table(config, "model")
    name = chosen.model_name or model.get("name") or config.get("model_name")
    if not isinstance(name, str) or not name:
        raise UnusableConfig("model.name is missing; write it there or give --model-name")
    request: dict[str, Any] = {
        "server_mode": chosen.server_mode or "replica",
        "model_name": name,
        "full_config": plain(config),
        "placement": {"namespace": "inf-integ"},
        "job": {**JOB, **dict(_job(runconfig))},
        "wait_for_ready": True,
        "run_diagnostics": False,
    }
    if chosen.app_tag:
        request["cbclient_config"] = {"app_tag": chosen.app_tag, "use_uv": True}
    return laid_over(request, chosen)


def laid_over(request: Mapping[str, Any], chosen: RequestFlags) -> dict[str, Any]:
    """`request` with the flags over it.

    What a flag says of the job is said in `full_config.runconfig` as well, where that says otherwise: release servers let
    it stand over `job`.
    """
    names = ("server_mode", "model_name", "wait_for_ready", "run_diagnostics", "request_id")
    top = {name: getattr(chosen, name) for name in names}
    made = {**request, **{key: value for key, value in top.items() if value is not None}}
    placement = {
        "multibox": chosen.multibox,
        "namespace": chosen.namespace,
        "app_tag": chosen.app_tag,
        "node": chosen.node,
    }
    _fill(made, "placement", {key: value for key, value in placement.items() if value is not None})
    job = {"job_priority": chosen.priority, "job_timeout_s": chosen.timeout_s}
    _fill(made, "job", {key: value for key, value in job.items() if value is not None})
    if chosen.labels:
        _fill(made, "job", {"job_labels": _joined(_table(made, "job").get("job_labels"), chosen.labels)})
    config = _table(made, "full_config")
    if job_flags := dict(_over_runconfig(_table(config, "runconfig"), chosen)):
        _fill(made, "full_config", {"runconfig": {**_table(config, "runconfig"), **job_flags}})
    if chosen.use_uv is not None:
        tag = chosen.app_tag or _table(made, "placement").get("app_tag")
        if not tag and "cbclient_config" not in made:
            raise UnusableConfig("--use-uv needs a build: give --app-tag")
        _fill(made, "cbclient_config", {"use_uv": chosen.use_uv, **({"app_tag": tag} if tag else {})})
    return made


def plain(value: Any) -> Any:
    """YAML's values as JSON can carry them: dates as text, keys as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


def _job(runconfig: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    priority = runconfig.get("job_priority")
    if priority is not None:
        yield "job_priority", str(priority)
    key = next((key for key in TIMEOUT_KEYS if runconfig.get(key) is not None), None)
    if key is not None:
        seconds = runconfig[key]
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 1:
            raise UnusableConfig(f"runconfig.{key} must be a number of seconds, not {seconds!r}")
        yield "job_timeout_s", int(seconds)
    labels = runconfig.get("job_labels")
    if labels:
        yield "job_labels", _labels(labels)
    if isinstance(runconfig.get("disable_scheduler"), bool):
        yield "disable_scheduler", runconfig["disable_scheduler"]


def _over_runconfig(runconfig: Mapping[str, Any], chosen: RequestFlags) -> Iterator[tuple[str, Any]]:
    """Members of `runconfig` that a flag says otherwise."""
    if chosen.priority is not None and "job_priority" in runconfig:
        yield "job_priority", chosen.priority
    if chosen.timeout_s is not None:
        yield from ((key, chosen.timeout_s) for key in TIMEOUT_KEYS if key in runconfig)
    if chosen.labels and runconfig.get("job_labels"):
        yield "job_labels", _joined(runconfig["job_labels"], chosen.labels)


def _joined(labels: Any, more: Sequence[str]) -> list[str]:
    """Labels and more of them; of two with one name the later counts."""
    return list({label.partition("=")[0]: label for label in [*_labels(labels or []), *more]}.values())


def _labels(labels: Any) -> list[str]:
    """Labels as `name=value` texts; they may be written as a list, a table or one text with commas."""
    if isinstance(labels, Mapping):
        return [f"{key}={value}" for key, value in labels.items()]
    if isinstance(labels, str):
        return [part.strip() for part in labels.split(",") if part.strip()]
    if isinstance(labels, list):
        return [str(label) for label in labels]
    raise UnusableConfig(f"job_labels must be a list, not {type(labels).__name__}")


def _fill(request: dict[str, Any], section: str, values: Mapping[str, Any]) -> None:
    if values:
        request[section] = {**_table(request, section), **values}


def _table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = config.get(key)
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        raise UnusableConfig(f"{key} must be a table, not {type(table).__name__}")
    return table
