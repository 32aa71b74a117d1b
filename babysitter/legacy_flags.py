"""The flag form: the ancestors' flags that describe a backend, turned into the `[backend]` table they mean."""

import argparse
import shlex
from collections.abc import Mapping
from typing import Any

from common.settings import KeyPath, Layer, SettingsError

PASSED_ON = {
    "dev": "--dev",
    "ndev": "--ndev",
    "max_batch": "--max-batch",
    "max_tokens": "--max-tokens",
    "request_timeout": "--request-timeout",
    "max_concurrency": "--max-concurrency",
    "model_name": "--model-name",
}
"""Flags that InfiniLM's own launch script understands under the same names."""
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
    add("--service-type", metavar="TYPE", type=str.lower, help="InfiniLM or InfiniLM-Rust")
    add("--path", metavar="PATH", help="model directory (InfiniLM) or configuration file (InfiniLM-Rust)")
    add("--launch-script", metavar="FILE", help="InfiniLM's script (default: launch_server.py)")
    add("--dev", metavar="NAME", help="InfiniLM: kind of device")
    add("--ndev", metavar="N", type=int, help="InfiniLM: number of devices")
    add("--max-batch", metavar="N", type=int, help="InfiniLM: largest batch")
    add("--max-tokens", metavar="N", type=int, help="InfiniLM: most tokens of an answer")
    add("--awq", action="store_true", help="InfiniLM: AWQ weights")
    add("--request-timeout", metavar="S", type=int, help="InfiniLM: limit of one request, in seconds")
    add("--max-concurrency", metavar="N", type=int, help="InfiniLM: requests at once")
    add("--model-name", metavar="NAME", help="InfiniLM: name of the model served")


def backend_layer(parsed: argparse.Namespace, in_file: Mapping[str, Any]) -> Layer:
    """The layer that the given flags make; `in_file` is the file's `[backend]`, which they override.

    Raises:
        SettingsError: The flags contradict each other or the file.
    """
    given = vars(parsed)
    table: dict[str, Any] = {}
    labels: dict[KeyPath, str] = {("backend",): "flags"}
    kind = _kind(given, in_file)
    if kind is not None:
        table["type"] = kind
    if "command" in given:
        table["command"] = given["command"]
    if "args" in given:
        values: list[str] = given["args"]
        table["args"] = shlex.split(values[0]) if len(values) == 1 else values
    if "work_dir" in given:
        table["work_dir"] = given["work_dir"]
    if "env" in given:
        table["env"] = dict(_pair(text) for text in given["env"])
    table |= _infinilm(given, kind or str(in_file.get("type", "")).lower())
    labels |= {("backend", name): f"--{name.replace('_', '-')}" for name in table}
    return Layer("flags", {"backend": table} if table else {}, labels)


def _kind(given: Mapping[str, Any], in_file: Mapping[str, Any]) -> str | None:
    """The backend's type as the flags tell it, or None when the file's stands."""
    if "service_type" in given:
        if "command" in given:
            raise SettingsError("--service-type and --command contradict each other; give one")
        kind: str = given["service_type"]
        if kind not in ("infinilm", "infinilm-rust"):
            raise SettingsError(f"--service-type: must be InfiniLM or InfiniLM-Rust (got {kind})")
        return kind
    if "command" in given:
        return "command"
    if not in_file and "path" in given:
        return "infinilm"
    return None


def _infinilm(given: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The InfiniLM flags as members of the backend's table."""
    passed = {name: flag for name, flag in PASSED_ON.items() if name in given}
    named = [name for name in ("path", "launch_script", "awq") if name in given]
    if kind == "infinilm-rust":
        wrong = [name for name in (*passed, *named) if name != "path" and name not in RUST_IGNORES]
        if wrong:
            raise SettingsError(f"--{wrong[0].replace('_', '-')}: InfiniLM-Rust takes it from its configuration file")
        return {"config_file": given["path"]} if "path" in given else {}
    if (passed or named) and kind != "infinilm":
        flag = f"--{[*named, *passed][0].replace('_', '-')}"
        raise SettingsError(f"{flag}: only for --service-type InfiniLM (the backend is {kind or 'not given'})")
    table: dict[str, Any] = {}
    if "path" in given:
        table["model_path"] = given["path"]
    if "launch_script" in given:
        table["launch_script"] = given["launch_script"]
    args = [word for name, flag in passed.items() for word in (flag, str(given[name]))]
    args += ["--awq"] if given.get("awq") else []
    if args:
        table["args"] = args
    return table


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise SettingsError(f"--env: must be NAME=VALUE (got {text})")
    return name, value
