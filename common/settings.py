"""Settings: defaults < file < environment < flags, validated once into a frozen pydantic model.

A service declares each setting once, with `option()`: its default, its help, its limits, its flags and its environment
variables. The parser, `--help`, the error messages and the reference page are all made from that declaration. Every
error names the key and where it came from (the file, the variable, the flag), and changes nothing.
"""

import argparse
import difflib
import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeAlias, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from common import settings_text

Model = TypeVar("Model", bound="Settings")
Table: TypeAlias = dict[str, Any]
"""What an operator wrote: a table of a settings file, as it was parsed."""
KeyPath = tuple[str, ...]
FILE_LIMIT_BYTES = 1 << 20
PREFIX = "SVC_"
SERVICE_PREFIXES = tuple(f"{PREFIX}{room}_" for room in ("REGISTRY", "ROUTER", "BABYSITTER", "AGENT"))
NO_SETTINGS = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("VENV", "SETUP", "COMPILE", "PYTHON_FOR_VENV", "LAUNCHED", "LAUNCHED_AS"),  # the scripts'
        *("REGISTRY_URL", "ROUTER_URL", "API_URL", "TOKEN_FILE", "KEY_FILE", "STATE_DIR"),  # svcctl's
    )
)
"""Variables of the suite that are no service's settings."""


FROM_ENV = "environment "
"""What a label begins with whose setting a variable made."""


class SettingsError(ValueError):
    """Settings that cannot be used; the text has one line per fault and is meant for the operator."""


class Settings(BaseModel):
    """Base of every settings model: frozen, and an unknown key is an error."""

    # `CUDA_VISIBLE_DEVICES = 0` is how people write a variable in TOML.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, defer_build=True
    )
    _from_environment: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _present_names(cls, data: Any) -> Any:
        """A setting under a former name is that setting, unless it is there under its own as well."""
        if not isinstance(data, Mapping):
            return data
        present = {old: name for name, info in cls.model_fields.items() for old in _mark(info, "was") or ()}
        old_names = [old for old in present if old in data]
        if not old_names:
            return data
        renamed = {name: value for name, value in data.items() if name not in old_names}
        return {**{present[old]: data[old] for old in old_names}, **renamed}

    def retired(self) -> dict[str, str]:
        """What is set here and no longer means anything, by name, each with what to do about it."""
        remedies: dict[str, str] = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Settings):
                remedies |= {f"{name}.{member}": remedy for member, remedy in value.retired().items()}
            elif value is not None and _mark(info, "retired"):
                remedies[name] = info.description or ""
        return remedies

    @property
    def from_environment(self) -> tuple[str, ...]:
        """Variables that set something here: reading again finds them as the process was started with them."""
        return self._from_environment


def _split_commas(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaList = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
"""Strings given as a list in a file, or separated by commas in a flag or a variable."""
CommaPaths = Annotated[tuple[Path, ...], BeforeValidator(_split_commas)]
"""Paths in the same way."""


def option(
    default: Any,
    help_text: str,
    *,
    flags: Sequence[str] | None = None,
    env: Sequence[str] = (),
    restart: bool = False,
    retired: bool = False,
    was: Sequence[str] = (),
    **limits: Any,
) -> Any:
    """Declare one setting.

    Args:
        default: Its default; `...` makes it required. A callable of no arguments makes a new default each time.
        help_text: One sentence for `--help` and the reference page, with the unit.
        flags: Flags that set it; None derives `--the-name` for a top-level setting, `()` means none.
        env: Variables besides `PREFIX_THE_NAME`, which every top-level setting and every flag has, but for tables and
            lists that text cannot give.
        restart: True when a running service keeps the value that it was started with (`needing_restart`).
        retired: True when nobody reads it any more: whoever still sets it is warned with `help_text`.
        was: Names that it had, or has in an ancestor's files: they are taken as well.
        limits: Passed to `pydantic.Field` (`ge`, `le`, `pattern` …).
    """
    made = {"default_factory": default} if callable(default) else {"default": default}
    extra: Any = {
        "flags": None if flags is None else list(flags),
        "env": list(env),
        "restart": restart,
        "retired": retired,
        "was": list(was),
    }
    return Field(description=help_text, json_schema_extra=extra, **made, **limits)


def needing_restart(model: type[BaseModel]) -> frozenset[str]:
    """The top-level settings of `model` that a running service cannot change."""
    return frozenset(name for name, info in model.model_fields.items() if _mark(info, "restart"))


def _mark(info: FieldInfo, mark: str) -> Any:
    """What `option` was given as `mark`; None for a field that no `option` declared."""
    return info.json_schema_extra.get(mark) if isinstance(info.json_schema_extra, dict) else None


@functools.cache
def _help_width() -> int:
    return shutil.get_terminal_size().columns - 2  # as argparse has it


class Help(argparse.HelpFormatter):
    """argparse makes one for every flag that is added, and each would ask for the terminal's size."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_help_width())


@dataclass(frozen=True, slots=True)
class Option:
    """One setting as `options()` finds it in a model."""

    path: KeyPath
    flags: tuple[str, ...]
    env: tuple[str, ...]
    info: FieldInfo

    @property
    def was(self) -> tuple[str, ...]:
        """Its former names."""
        return tuple(_mark(self.info, "was") or ())

    @property
    def key(self) -> str:
        """Dotted name, as written in messages and in the reference."""
        return ".".join(self.path)

    @property
    def is_switch(self) -> bool:
        """True for a boolean: its flag takes no value and has a `--no-` form."""
        return self.info.annotation is bool


@functools.lru_cache(maxsize=16)  # each layer of a start goes through all of them
def options(model: type[BaseModel], env_prefix: str, path: KeyPath = ()) -> tuple[Option, ...]:
    """Every setting of `model`, nested sections included, in the order of declaration."""
    return tuple(_options(model, env_prefix, path))


def _options(model: type[BaseModel], env_prefix: str, path: KeyPath) -> Iterator[Option]:
    for name, info in model.model_fields.items():
        section = _section_of(info.annotation)
        if section is not None:
            yield from options(section, env_prefix, (*path, name))
            continue
        flags = _mark(info, "flags")
        derived = () if path else (f"--{name.replace('_', '-')}",)
        names = derived if flags is None else tuple(flags)
        word = name if not path else next((flag[2:].replace("-", "_") for flag in names if flag.startswith("--")), "")
        words = (*(() if path else _mark(info, "was") or ()), word) if word and _takes_text(info) else ()
        variables = [variable for one in words for variable in _variables(env_prefix, one.upper())]
        yield Option(path=(*path, name), flags=names, env=(*(_mark(info, "env") or ()), *variables), info=info)


def _variables(env_prefix: str, word: str) -> tuple[str, ...]:
    """`SVC_ROUTER_ROUTER_PORT`, and before it (the last one wins) the `SVC_ROUTER_PORT` that people write."""
    room = f"{env_prefix.rstrip('_').rpartition('_')[2]}_"
    plain = (f"{env_prefix}{word.removeprefix(room)}",) if word.startswith(room) and room != "_" else ()
    return (*plain, f"{env_prefix}{word}")


def _takes_text(info: FieldInfo) -> bool:
    """False for a table and for a list that is no `CommaList`: no variable could set them."""
    if any(isinstance(part, BeforeValidator) and part.func is _split_commas for part in info.metadata):
        return True
    parts = get_args(info.annotation) if get_origin(info.annotation) in (Union, UnionType) else (info.annotation,)
    return not any(get_origin(part) in (dict, tuple) or _section_of(part) for part in parts)


def read_file(path: Path) -> Any:
    """Parse a TOML (`.toml`), JSON or YAML file (`.json`, `.yaml`, `.yml`); under any other name, such as `.conf`, either.

    Raises:
        SettingsError: It is missing, unreadable, or no valid syntax.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > FILE_LIMIT_BYTES:
        raise SettingsError(f"{path}: larger than {FILE_LIMIT_BYTES} bytes")
    try:
        text = raw.decode("utf-8-sig")  # some editors begin a file with a byte order mark
        return settings_text.parse(text, path.suffix)
    except (ValueError, RecursionError) as error:
        kind = "YAML" if path.suffix in settings_text.YAML else "TOML"
        raise SettingsError(f"{path}: not valid {kind}: {' '.join(str(error).split())}") from error


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of settings. `labels` names where each key was set; other keys are said to be from `name`."""

    name: str
    data: Table
    labels: Mapping[KeyPath, str]


def file_layer(path: Path) -> Layer:
    """The layer of a settings file.

    Raises:
        SettingsError: It cannot be read, or is no table of settings.
    """
    data = read_file(path) or {}
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: must be a table of settings, not a {type(data).__name__}")
    return Layer(str(path), data, {})


def env_layer(model: type[BaseModel], env_prefix: str, env: Mapping[str, str]) -> Layer:
    """The layer of the environment; an empty variable counts as not set."""
    data: Table = {}
    labels: dict[KeyPath, str] = {}
    for setting in options(model, env_prefix):
        for variable in setting.env:
            if env.get(variable):
                _put(data, setting.path, env[variable])
                labels[setting.path] = f"{FROM_ENV}{variable}"
    return Layer("environment", data, labels)


def unknown_variables(model: type[BaseModel], env_prefix: str, env: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that look like settings and that nobody reads, each with the name that may have been meant.

    These are those with the service's own prefix, and those with a prefix of no service at all.
    """
    variables = {name for setting in options(model, env_prefix) for name in setting.env} | {f"{env_prefix}CONFIG"}
    strange = [
        name
        for name in env
        if name.startswith(PREFIX)
        and name not in variables | NO_SETTINGS
        and (name.startswith(env_prefix) or not name.startswith(SERVICE_PREFIXES))
    ]
    return {name: next(iter(difflib.get_close_matches(name, variables, n=1)), None) for name in sorted(strange)}


def add_flags(parser: argparse.ArgumentParser, model: type[BaseModel], env_prefix: str) -> None:
    """Add the flags of every setting of `model` to `parser`; the values stay text for pydantic to judge."""
    if parser.formatter_class is argparse.HelpFormatter:
        parser.formatter_class = Help
    for setting in options(model, env_prefix):
        if not setting.flags:
            continue
        described = (setting.info.description or "").replace("%", "%%")
        default = setting.info.get_default(call_default_factory=True, validated_data={})
        shown = "" if default in (None, PydanticUndefined, (), "") else f" (default: {_show(default)})"
        form: Any = (
            {"action": argparse.BooleanOptionalAction} if setting.is_switch else {"metavar": setting.path[-1].upper()}
        )
        help_text = f"{described}{shown}"
        parser.add_argument(*setting.flags, dest=setting.key, default=argparse.SUPPRESS, help=help_text, **form)


def flag_layer(model: type[BaseModel], env_prefix: str, parsed: argparse.Namespace) -> Layer:
    """The layer of the flags that `add_flags` made and the user gave."""
    data: Table = {}
    labels: dict[KeyPath, str] = {}
    values = vars(parsed)
    for setting in options(model, env_prefix):
        if setting.key in values:
            _put(data, setting.path, values[setting.key])
            labels[setting.path] = setting.flags[0]
    return Layer("flags", data, labels)


def build(model: type[Model], layers: Sequence[Layer]) -> Model:
    """Merge `layers` (later ones win, tables key by key) and validate.

    Raises:
        SettingsError: One line per fault, each naming its source and its key.
    """
    merged: Table = {}
    origin: dict[KeyPath, str] = {}
    for layer in layers:
        _merge(merged, layer.data, (), layer, origin)
    faults = list(_truths_for_numbers(model, merged, origin))
    try:
        built = model.model_validate(merged)
    except ValidationError as error:
        faults.extend(_fault(model, details, merged, origin, layers) for details in error.errors())
        raise SettingsError("\n".join(dict.fromkeys(faults))) from error
    if faults:
        raise SettingsError("\n".join(faults))
    if isinstance(built, Settings):
        labels = {label for layer in layers for label in layer.labels.values()}
        named = sorted(label.removeprefix(FROM_ENV) for label in labels if label.startswith(FROM_ENV))
        built._from_environment = tuple(named)  # noqa: SLF001 - our own
    return built


def load(
    model: type[Model],
    *,
    prog: str,
    env_prefix: str,
    argv: Sequence[str],
    env: Mapping[str, str],
) -> Model:
    """Read settings for a service from its flags, environment and `--config` file.

    Raises:
        SettingsError: They cannot be used.
        SystemExit: argparse's, after `--help` or an unknown flag.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(model.__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog=f"Each of them can also stand in the --config file, or in the environment as {env_prefix}NAME.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML or YAML file of settings; flags and environment win")
    add_flags(parser, model, env_prefix)
    parsed = parser.parse_args(argv)
    config = parsed.config or env.get(f"{env_prefix}CONFIG")
    layers = [file_layer(Path(config))] if config else []
    return build(model, [*layers, env_layer(model, env_prefix, env), flag_layer(model, env_prefix, parsed)])


def find_config(*, env_prefix: str, argv: Sequence[str], env: Mapping[str, str]) -> Path | None:
    """The settings file that `load` would read, so that a service can watch it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    path = parser.parse_known_args(argv)[0].config or env.get(f"{env_prefix}CONFIG")
    return Path(path) if path else None


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The nested model of a field that is one section, or None (a union of several models is no section)."""
    if get_origin(annotation) in (Union, UnionType):
        inner = [part for part in get_args(annotation) if part is not NoneType]
        annotation = inner[0] if len(inner) == 1 else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _put(data: Table, path: KeyPath, value: Any) -> None:
    for name in path[:-1]:
        data = data.setdefault(name, {})
    data[path[-1]] = value


def _merge(into: Table, data: Table, path: KeyPath, layer: Layer, origin: dict[KeyPath, str]) -> None:
    for name, value in data.items():
        here = (*path, str(name))
        if isinstance(value, dict):
            existing = into.get(name)
            table: Table = existing if isinstance(existing, dict) else {}
            into[name] = table
            origin.setdefault(here, layer.labels.get(here, layer.name))
            _merge(table, value, here, layer, origin)
        else:
            into[name] = value
            origin[here] = layer.labels.get(here, layer.name)


def _truths_for_numbers(model: type[BaseModel], merged: Table, origin: Mapping[KeyPath, str]) -> Iterator[str]:
    """`port = true` is a mistake; pydantic would read 1."""
    for setting in options(model, ""):
        kinds = {setting.info.annotation, *get_args(setting.info.annotation)}
        if bool in kinds or not kinds & {int, float}:
            continue
        table: Any = merged
        for name in setting.path[:-1]:
            table = table.get(name) if isinstance(table, Mapping) else None
        for name in (setting.path[-1], *setting.was):
            value = table.get(name) if isinstance(table, Mapping) else None
            if isinstance(value, bool):
                path = (*setting.path[:-1], name)
                yield f"{origin[path]}: '{'.'.join(path)}': must be a number (got {str(value).lower()})"


def _fault(
    model: type[BaseModel],
    details: ErrorDetails,
    merged: Table,
    origin: Mapping[KeyPath, str],
    layers: Sequence[Layer],
) -> str:
    """One line for one pydantic error: source, key, what is wrong, and the remedy where it is known."""
    path = _as_written(model, _in_data(details["loc"], merged), origin)
    source = next((origin[path[:end]] for end in range(len(path), 0, -1) if path[:end] in origin), None)
    source = source or (layers[0].name if layers else "settings")
    key = ".".join(path) or "settings"
    if details["type"] == "extra_forbidden":
        names = [setting.path[-1] for setting in options(model, "")] + list(model.model_fields)
        close = difflib.get_close_matches(path[-1], names, n=1)
        return f"{source}: unknown key '{key}'" + (f" (did you mean '{close[0]}'?)" if close else "")
    if details["type"] == "missing":
        flags = next((setting.flags for setting in options(model, "") if setting.path == path), ())
        remedy = f"; set it in the file or with {flags[0]}" if flags else ""
        return f"{source}: '{key}' is missing{remedy}"
    message = details["msg"].removeprefix("Value error, ")
    value = details["input"]
    shown = f" (got {_show(value)})" if isinstance(value, str | int | float | bool) else ""
    if str(value).startswith("tcp://"):
        shown += (
            "; Kubernetes sets such variables for a Service of that name: enableServiceLinks: false leaves them out"
        )
    return f"{source}: '{key}': {message[:1].lower()}{message[1:]}{shown}"


def _as_written(model: type[BaseModel], path: KeyPath, origin: Mapping[KeyPath, str]) -> KeyPath:
    """The former name, where the setting was given under that."""
    names = next((setting.was for setting in options(model, "") if setting.path == path), ())
    former = [(*path[:-1], name) for name in names]
    return next((one for one in former if one in origin and path not in origin), path)


def _in_data(location: tuple[int | str, ...], data: Any) -> KeyPath:
    """`location` without the union tags that pydantic puts between real keys."""
    path: list[str] = []
    for index, part in enumerate(location):
        last = index + 1 == len(location)
        if isinstance(data, dict) and not last and not isinstance(data.get(part), dict | list):
            continue  # a tag, even where a key of the same name holds a plain value
        path.append(str(part))
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return tuple(path)


def _show(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"  # noqa: PLR2004 - what fits a terminal line
