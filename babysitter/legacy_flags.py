"""The flag form: the ancestors' flags that describe a backend, turned into the `[backend]` table they mean."""

import argparse
import shlex
from pathlib import PurePath
from typing import Any, TypeAlias

from common.settings import KeyPath, Layer, SettingsError

Table: TypeAlias = dict[str, Any]
"""A `[backend]` table as it stands in a file, and as flags make it."""
KINDS = ("command", "vllm", "mock", "infinilm", "infinilm-rust")
"""What `--service-type` may say, in any case."""
PASSED_ON = {
    "dev": "--dev",
    "ndev": "--ndev",
    "max_batch": "--max-batch",
    "request_timeout": "--request-timeout",
    "max_tokens": "--max-tokens",
    "awq": "--awq",
    "max_concurrency": "--max-concurrency",
    "model_name": "--model-name",
}
"""Flags that InfiniLM's own launch script understands under the same names, in the ancestor's order."""
PATH_MEANS = {"command": "command", "vllm": "model", "infinilm": "model_path", "infinilm-rust": "config_file"}
"""What `--path` gives to each kind of backend."""
ONLY_MOCK = "mock-model"
"""The model of a mock that was told none."""
RUST_IGNORES = ("request_timeout", "max_concurrency")
"""Flags of the ancestor's own watchdog and semaphore that its launch scripts give to either kind of server."""


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """Add them to `parser`; absent ones leave no trace in the namespace."""
    group = parser.add_argument_group("backend", "instead of [backend] in the file")

    def add(*flags: str, **named: Any) -> None:
        group.add_argument(*flags, default=argparse.SUPPRESS, **named)

    add("--command", metavar="COMMAND", help="run this program (may hold several words)")
    add("--args", metavar="ARG", nargs="+", action="extend", help="its arguments; one value is split as a shell would")
    add("--work-dir", metavar="DIR", help="its working directory")
    add("--env", metavar="K=V", action="append", help="add to its environment (repeatable)")
    add("--service-type", metavar="TYPE", type=str.lower, help="command, vLLM, mock, InfiniLM or InfiniLM-Rust")
    add(
        "--path",
        metavar="PATH",
        help="model directory (InfiniLM), model (vLLM), configuration file (InfiniLM-Rust) or command",
    )
    add(
        "--launch-script",
        metavar="FILE",
        help="InfiniLM's script (default: the first launch_server.py of several places)",
    )
    add("--dev", metavar="NAME", help="InfiniLM: kind of device")
    add("--ndev", metavar="N", type=int, help="InfiniLM: number of devices")
    add("--max-batch", metavar="N", type=int, help="InfiniLM: largest batch")
    add("--max-tokens", metavar="N", type=int, help="InfiniLM: most tokens of an answer")
    add("--awq", action="store_true", help="InfiniLM: AWQ weights")
    add("--request-timeout", metavar="S", type=int, help="InfiniLM: limit of one request, in seconds")
    add("--max-concurrency", metavar="N", type=int, help="InfiniLM: requests at once")
    add("--model-name", metavar="NAME", help="InfiniLM, vLLM, mock: name of the model served")


def backend_layer(parsed: argparse.Namespace, in_file: Table) -> Layer:
    """The layer that the given flags make; `in_file` is the file's `[backend]`, which they override.

    Raises:
        SettingsError: The flags contradict each other or the file.
    """
    flags = vars(parsed)
    table: Table = {}
    labels: dict[KeyPath, str] = {("backend",): "flags"}
    kind = _kind(flags, in_file)
    if kind is not None:
        table["type"] = kind
    if "command" in flags:
        table["command"] = flags["command"]
    if "args" in flags:
        values: list[str] = flags["args"]
        table["args"] = shlex.split(values[0]) if len(values) == 1 else values
    if "work_dir" in flags:
        table["work_dir"] = flags["work_dir"]
    if "env" in flags:
        table["env"] = dict(_pair(text) for text in flags["env"])
    table |= _of_kind(flags, kind or str(in_file.get("type", "")).lower(), table)
    labels |= {("backend", name): f"--{name.replace('_', '-')}" for name in table}
    return Layer("flags", {"backend": table} if table else {}, labels)


def _kind(flags: Table, in_file: Table) -> str | None:
    """The backend's type as the flags tell it, or None when the file's stands."""
    if "service_type" in flags:
        kind: str = flags["service_type"]
        if kind not in KINDS:
            raise SettingsError(f"--service-type: must be command, vLLM, mock, InfiniLM or InfiniLM-Rust (got {kind})")
        if "command" in flags and kind != "command":
            raise SettingsError("--service-type and --command contradict each other; give one")
        return kind
    if "command" in flags:
        return "command"
    if not in_file and "path" in flags:
        return "infinilm"
    return None


def _of_kind(flags: Table, kind: str, table: Table) -> Table:
    """The flags that one kind of backend understands, as members of its table; `table` has those of all kinds."""
    passed = [name for name in PASSED_ON if name in flags]
    named = [name for name in ("path", "launch_script") if name in flags]
    understood = {
        "command": {"path"},
        "vllm": {"path", "model_name"},
        "mock": {"path", "model_name"},
        "infinilm": {*passed, *named},
        "infinilm-rust": {"path", *RUST_IGNORES},
    }.get(kind, set())
    if wrong := [name for name in (*named, *passed) if name not in understood]:
        flag = f"--{wrong[0].replace('_', '-')}"
        if kind == "infinilm-rust":
            raise SettingsError(f"{flag}: InfiniLM-Rust takes it from its configuration file")
        raise SettingsError(f"{flag}: only for --service-type InfiniLM (the backend is {kind or 'not given'})")
    members: Table = {}
    if "path" in flags and kind in PATH_MEANS and PATH_MEANS[kind] not in table:
        members[PATH_MEANS[kind]] = flags["path"]
    if "launch_script" in flags:
        members["launch_script"] = flags["launch_script"]
    if kind == "mock" and ("service_type" in flags or "model_name" in flags):
        names = flags.get("model_name") or PurePath(flags.get("path", ONLY_MOCK)).name
        members["models"] = [part.strip() for part in names.split(",") if part.strip()]
    if kind == "vllm" and "model_name" in flags:
        members["args"] = [*table.get("args", ()), "--served-model-name", flags["model_name"]]
    if kind == "infinilm" and passed:
        members["args"] = [*_infinilm_words(flags), *table.get("args", ())]
    return members


def _infinilm_words(flags: Table) -> list[str]:
    """The words for InfiniLM's launch script."""
    words = []
    for name, flag in PASSED_ON.items():
        if name == "awq":
            words += [flag] if flags.get(name) else []
        elif name in flags:
            words += [flag, str(flags[name])]
    return words


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise SettingsError(f"--env: must be NAME=VALUE (got {text})")
    return name, value
