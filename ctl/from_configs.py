"""PURE. Hand-written babysitter files become a fleet file; what cannot be carried over stands in it as a comment."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from common.wire.base import JsonObject
from ctl import late

if TYPE_CHECKING:
    import yaml
else:
    yaml = late.module("yaml")

MEMBER = "deployments"
"""Of a fleet file: where everything stands."""
ASSIGNING = ("CUDA", "HIP", "ROCR", "HPCC", "ASCEND_RT", "MUSA", "MLU")
"""`X_VISIBLE_DEVICES` names the accelerators that a server may use; an agent assigns them itself."""
FLAGS: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "--max-model-len": "max_model_len",
        "--gpu-memory-utilization": "gpu_memory_utilization",
        "--dtype": "dtype",
        "--quantization": "quantization",
        "--max-num-seqs": "max_num_seqs",
        "--tensor-parallel-size": "=accelerators",
        "-tp": "=accelerators",
        "--served-model-name": "=model",
    },
    "infinilm": {"--dev": "dev", "--ndev": "=accelerators", "--max-batch": "max_batch", "--max-tokens": "max_tokens"},
    "llama-cpp": {
        "--model": "model",
        "-m": "model",
        "--ctx-size": "ctx_size",
        "-c": "ctx_size",
        "--parallel": "parallel",
        "-np": "parallel",
        "--threads": "threads",
        "-t": "threads",
        "--n-gpu-layers": "gpu_layers",
        "-ngl": "gpu_layers",
        "--alias": "=model",
        "--host": "",
        "--port": "",
    },
    "mock": {
        "--slow-start-s": "start_delay_s",
        "--ttft-s": "ttft_s",
        "--token-delay-s": "token_delay_s",
        "--tokens": "tokens",
    },
}
"""Flags that the shipped template can say, by template: its parameter, `=` a member of the deployment, or what it says itself."""
BARE: Mapping[str, Mapping[str, str]] = {"vllm": {"--enforce-eager": "enforce_eager"}, "llama-cpp": {"--metrics": ""}}
"""Likewise, without a value."""
WORK_DIRS = {"infinilm": "/opt/InfiniLM/scripts", "infinilm-rust": "/opt/InfiniLM-Rust"}
"""Where the shipped templates run; a file that says another place needs a template of its own."""
MODEL_KEYS = {
    "vllm": ("model", "model"),
    "infinilm": ("model_path", "model"),
    "infinilm-rust": ("config_file", "config_file"),
}
"""The member of `[backend]` that is a parameter, and which."""
OF_THE_NODE = ("port", "host", "advertise_host", "registry_url", "router_url", "data_dir", "log_dir")
"""An agent says these of each replica that it makes."""


class UnusableConfigs(ValueError):
    """A file that cannot become a deployment; the text names it, the member and the remedy."""


@dataclass(slots=True)
class Made:
    """One deployment: its specification, and what could not be carried over."""

    name: str
    spec: JsonObject
    files: list[str]
    notes: list[str] = field(default_factory=list)
    template: list[str] = field(default_factory=list)
    """Lines of the template file that it needs on its nodes, where no shipped one will do."""


def fleet(files: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """The fleet file, YAML, of (file name, content) pairs. Files that differ only in place are replicas of one deployment.

    Raises:
        UnusableConfigs: A file is no babysitter's, or two have one name.
    """
    made: list[Made] = []
    for file, content in files:
        one = deployment(file, content)
        twin = next((other for other in made if _same(other, one)), None)
        if twin is not None:
            count = twin.spec["replicas"]["max"] + 1
            twin.spec["replicas"] = {"min": count, "max": count}
            twin.files += one.files
            twin.notes += [f"{one.name}: is one more replica of this"] + [
                f"{one.name}: {note}" for note in one.notes if note not in twin.notes
            ]
            continue
        if any(other.name == one.name for other in made):
            raise UnusableConfigs(f"{file}: name {one.name!r} is another file's already; give it one of its own")
        taken = next((other for other in made if _model(other) == _model(one)), None)
        if taken is not None:
            one.notes.insert(
                0, f"model {_model(one)!r} is {taken.name}'s, which runs something else: one deployment for each model"
            )
            one.spec["model"] = one.name
        made.append(one)
    return "\n".join([_HEAD, f"{MEMBER}:" if made else f"{MEMBER}: {{}}", *(_lines(one) for one in made)])


_HEAD = """\
# Made by 'svcctl fleet from-configs'. Look through the comments, then: svcctl apply -f FILE --diff
# End a babysitter that was started by hand before its deployment starts, or both run."""


def deployment(file: str, content: Mapping[str, Any]) -> Made:
    """What one file becomes.

    Raises:
        UnusableConfigs: It is no babysitter's.
    """
    backend = content.get("backend")
    if not isinstance(backend, Mapping) or not isinstance(backend.get("type"), str):
        raise UnusableConfigs(f"{file}: backend.type: missing; is it a babysitter's file?")
    kind = backend["type"].lower()
    if kind == "cbclient":
        raise UnusableConfigs(f"{file}: backend.type: a release server's replica is a deployment's 'request' already")
    name = _name(str(content.get("name") or PurePath(file).stem))
    made = Made(name, {}, [file])
    if name != content.get("name"):
        made.notes.append(f"name = {content.get('name')!r}: written as {name}")
    spec: JsonObject = {"model": _served(content, backend, kind, name)}
    _template(made, spec, kind, backend, content)
    if devices := _devices(backend):
        spec["accelerators"] = len(devices)
    spec["replicas"] = {"min": 1, "max": 1}
    made.spec = spec
    _say_the_rest(made, content)
    return made


def _template(made: Made, spec: JsonObject, kind: str, backend: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """The template and its parameters; one of its own where the shipped cannot say what this file says."""
    args = [str(arg) for arg in backend.get("args") or ()]
    if kind == "command" and backend.get("command") == "llama-server":
        kind = "llama-cpp"
    parameters, left = _flags(args, kind)
    for member in ("model", "accelerators"):
        if (value := parameters.pop(f"={member}", None)) is not None:
            spec[member] = str(value) if member == "model" else value
    env = {key: value for key, value in (backend.get("env") or {}).items() if not _assigns(str(key))}
    if kind in MODEL_KEYS:
        key, parameter = MODEL_KEYS[kind]
        parameters[parameter] = str(backend.get(key, ""))
    if kind in ("mock", "infinilm-rust"):
        parameters["model"] = str(spec["model"])
    if kind == "mock" and (others := list(backend.get("models") or ())[1:]):
        made.notes.append(f"backend.models: a deployment serves one model; not these: {', '.join(map(str, others))}")
    known = {"type", "args", "env", "models", MODEL_KEYS.get(kind, ("",))[0]}
    known |= (
        {"command"}
        if kind == "llama-cpp"
        else {"work_dir"}
        if backend.get("work_dir") == WORK_DIRS.get(kind)
        else set()
    )
    rest = {key: value for key, value in backend.items() if key not in known and value is not None}
    if (kind in MODEL_KEYS or kind in FLAGS) and not (left or env or rest):
        spec["template"] = kind
        spec["parameters"] = parameters
        return
    spec["template"] = made.name
    kept: JsonObject = (
        {**backend, "env": env} if env else {key: value for key, value in backend.items() if key != "env"}
    )
    tables = {key: content[key] for key in ("metadata", "probes", "babysitter", "limits") if content.get(key)}
    top = {key: content[key] for key in ("models", "expected_models") if content.get(key)}
    made.template = _toml({**top, "backend": kept, **tables}, str(content.get("port") or ""))


def _say_the_rest(made: Made, content: Mapping[str, Any]) -> None:
    in_template = (
        {"metadata", "probes", "babysitter", "limits", "models", "expected_models"} if made.template else set()
    )
    in_spec = {"name", "backend", "models", "expected_models", *in_template}
    for key, value in content.items():
        if key in OF_THE_NODE:
            made.notes.append(f"{key} = {value!r}: its node's agent says so of each replica")
        elif key not in in_spec:
            made.notes.append(f"{key} = {value!r}: not carried over; a template can say it")
    listed = [*(content.get("models") or ()), *(content.get("expected_models") or ())]
    if not made.template and (others := [str(model) for model in listed if model != made.spec["model"]]):
        made.notes.append(f"models: a deployment serves one model; not these: {', '.join(others)}")


def _served(content: Mapping[str, Any], backend: Mapping[str, Any], kind: str, name: str) -> str:
    """The name that clients ask for."""
    for listed in (content.get("expected_models"), content.get("models"), backend.get("models")):
        if isinstance(listed, list) and listed:
            return str(listed[0])
    model = backend.get(MODEL_KEYS[kind][0]) if kind in ("vllm", "infinilm") else None
    return (str(model) if kind == "vllm" else PurePath(str(model)).name) if model else name


def _flags(args: list[str], template: str) -> tuple[JsonObject, list[str]]:
    """Arguments that the template can say, and the others."""
    known, bare = FLAGS.get(template, {}), BARE.get(template, {})
    said: JsonObject = {}
    left: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        flag, mark, value = word.partition("=")
        if word in bare:
            said[bare[word]] = True
        elif flag in known and (mark or rest):
            value = value if mark else rest.pop(0)
            said[known[flag]] = yaml.safe_load(value) if re.fullmatch(r"\d+(\.\d+)?", value) else value
        else:
            left.append(word)
    said.pop("", None)
    return said, left


def _devices(backend: Mapping[str, Any]) -> list[str]:
    env = backend.get("env") or {}
    listed = next((str(value) for key, value in env.items() if _assigns(str(key))), "")
    return [part for part in listed.split(",") if part.strip()]


def _assigns(variable: str) -> bool:
    return variable.removesuffix("_VISIBLE_DEVICES") in ASSIGNING and variable.endswith("_VISIBLE_DEVICES")


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "deployment"


def _same(one: Made, other: Made) -> bool:
    """Both run the same; only where differs."""

    def runs(made: Made) -> object:
        own: JsonObject = {key: value for key, value in made.spec.items() if key != "replicas"}
        return ({**own, "template": None} if made.template else own), made.template

    return runs(one) == runs(other)


def _model(made: Made) -> str:
    return str(made.spec.get("model") or made.name)


def _toml(tables: Mapping[str, Any], port: str) -> list[str]:
    """A template's text; the port of the file is the replica's own in it."""
    lines: list[str] = []
    simple = {key: value for key, value in tables.items() if not isinstance(value, Mapping)}
    lines += [f"{key} = {_value(value, port)}" for key, value in simple.items()]
    for key, table in tables.items():
        if isinstance(table, Mapping):
            lines += [f"[{key}]", *(f"{_key(name)} = {_value(value, port)}" for name, value in table.items())]
    return lines


def _value(value: Any, port: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item, port) for item in value)}]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(key))} = {_value(item, port)}" for key, item in value.items()) + " }"
    text = str(value).replace("{", "{{").replace("}", "}}") if re.search(r"\{[a-z]", str(value)) else str(value)
    return _quoted(re.sub(rf"(?<!\d){re.escape(port)}(?!\d)", "{port}", text) if port else text)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(text: str) -> str:
    """A TOML basic string: control characters escaped, so that none ends its line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else f"\\U{ord(char):08X}" for char in escaped) + '"'


def _lines(one: Made) -> str:
    told = [f"  # {' '.join(text.split())}" for text in (f"from {', '.join(one.files)}", *one.notes)]
    if one.template:
        told.append(f"  # template: put these lines into {one.name}.toml in the templates_dir of its nodes:")
        told += [f"  #     {line}" for line in one.template]
    body = yaml.safe_dump({one.name: one.spec}, sort_keys=False, allow_unicode=True, width=120).rstrip()
    return "\n".join([*told, *(f"  {line}" for line in body.splitlines()), ""])
