"""PURE. A template: what an operator's file says of a kind of server, and the babysitter's settings that a request makes of it.

`{name}` in a text is a parameter's value, whatever it holds, and `{{name}}` the text `{name}`. An entry of `args` is one
argument; one that is a list is left out when a parameter in it is unset. In such a list `{name?}` is no argument: it leaves
the list out unless `name` is set, and not false. A word that is `{name}` of a parameter of the type `strings` is as many
arguments as it has members. Nothing is split, and nothing reaches a shell.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from babysitter.agent.accelerators import Need
from common.wire.base import JsonObject
from common.wire.group import MOST_MEMBERS

Value: TypeAlias = str | int | float | bool | list[str]
ParameterName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Values: TypeAlias = Mapping[str, Value | None]
BUILT_IN = ("served_name", "accelerators", "port", "host")
IN_GROUPS = ("member_rank", "member_count", "is_follower", "leader_host", "rendezvous_port", "follower_addresses")
"""Built in where the template has `[members]`; others may call their parameters so."""
LONGEST, MOST_LISTED, MOST_PARAMETERS = 4096, 64, 64
FILLED = frozenset({"args", "env", "model", "models", "model_path", "config_file"})
"""Members of `[backend]` that may have parameters: not `command`, which is split into words, nor a place to run in."""
ASSIGNED = "_VISIBLE_DEVICES"
_PLACE = re.compile(r"\{(\{)?([a-z][a-z0-9_]*)(\?)?\}(?(1)\})")
_INTERPRETER = re.compile(r"(ba|da|z|k|a|fi)?sh|(python|perl|ruby|node|php|lua)[0-9.]*")
_PROGRAM_FOLLOWS = re.compile(r"-[A-Za-z]*[ce]|--(eval|command)")
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "strings": (list,),
}
_SAID = {
    "string": "a string", "integer": "an integer", "number": "a number", "boolean": "true or false",
    "strings": "a list of strings",
}  # fmt: skip


class TemplateError(ValueError):
    """A file that is no template; the text says where and why."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file; an unknown member is an error."""


class ParameterRule(Part, frozen=True, kw_only=True):
    """`[parameters.NAME]`: what it may be. `pattern` must match all of a text; `allow_dash`: a text may begin with `-`."""

    type: Literal["string", "integer", "number", "boolean", "strings"] = "string"
    default: Value | None = None
    required: bool = False
    description: Annotated[str, Meta(max_length=400)] = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: Annotated[list[str | int | float], Meta(min_length=1, max_length=256)] | None = None
    pattern: Annotated[str, Meta(max_length=400)] | None = None
    allow_dash: bool = False

    def __post_init__(self) -> None:
        """The rule makes sense, and its default keeps to it."""
        if self.required and self.default is not None:
            raise ValueError("is required, so its default would never be used")
        is_text = self.type in ("string", "strings")
        if not is_text and (self.pattern is not None or self.allow_dash):
            raise ValueError("pattern and allow_dash are for texts")
        if self.type not in ("integer", "number") and not (self.minimum is None and self.maximum is None):
            raise ValueError("minimum and maximum are for numbers")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern: {error}") from error
        if self.default is not None and (problem := fault(self, self.default)):
            raise ValueError(f"default: {problem}")


class Members(Part, frozen=True, kw_only=True):
    """`[members]`: its replicas are groups of a leader, which `[backend]` starts and that alone is asked, and `followers`.

    `backend` is what followers run where that is something else. A follower is up when its process runs; with `listens`, when
    somebody could connect to its port.
    """

    followers: Annotated[int, Meta(ge=1, lt=MOST_MEMBERS)] = 1
    backend: dict[str, Any] | None = None
    listens: bool = False


class TemplateFile(Part, frozen=True, kw_only=True):
    """The whole file. But for the first tables, it is a babysitter's own, in which parameters may stand."""

    description: Annotated[str, Meta(max_length=400)] = ""
    parameters: Annotated[dict[ParameterName, ParameterRule], Meta(max_length=MOST_PARAMETERS)] = {}
    needs: Need = Need()
    sleep: dict[str, Any] | None = None
    members: Members | None = None
    backend: dict[str, Any]
    models: list[str] = []
    expected_models: list[str] = []
    metadata: dict[str, Any] = {}
    probes: dict[str, Any] = {}
    babysitter: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    lora: dict[str, Any] = {}
    slurm: dict[str, str | int] = {}

    @property
    def built_in(self) -> tuple[str, ...]:
        """What may stand in it beside its parameters."""
        return (*BUILT_IN, *IN_GROUPS) if self.members else BUILT_IN

    def of_rank(self, rank: int) -> "TemplateFile":
        """The template of that member of a group: of a follower nobody is told anything but how it is started."""
        if not self.members or not rank:
            return self
        backend = self.members.backend or self.backend
        probes = {"ready_when": "listens" if self.members.listens else "runs"}
        return replace(self, backend=backend, models=[], expected_models=[], metadata={}, probes=probes, lora={})


def parse(content: Mapping[str, Any], assigning: str = "") -> TemplateFile:
    """The template in a parsed file, which may not set the variable `assigning`, nor any of the usual ones.

    Raises:
        TemplateError: It is none; names the member.
    """
    try:
        file = msgspec.convert(content, TemplateFile)
    except msgspec.ValidationError as error:
        raise TemplateError(str(error)) from error
    if taken := sorted(set(file.built_in) & set(file.parameters)):
        raise TemplateError(f"parameters.{taken[0]}: is the name of something built in; give it another")
    if file.members and file.sleep:
        raise TemplateError("sleep: is not for groups: leave it or [members] out")
    for one in (file, file.of_rank(1)) if file.members else (file,):
        if one.backend.get("type") in (None, "cbclient"):
            raise TemplateError("backend.type: must be command, vllm, mock, infinilm or infinilm-rust")
        _check_places(one)
        _check_env(one, assigning)
        _check_args(one)
    return file


def _check_places(file: TemplateFile) -> None:
    """Parameters are there, and stand where they may.

    Raises:
        TemplateError: One is not, or does not.
    """
    known = {*file.built_in, *file.parameters}
    for where, text in _texts(msgspec.to_builtins(file)):
        for match in _PLACE.finditer(text):
            if match[1]:
                continue
            if where[0] == "backend" and (len(where) < 2 or where[1] not in FILLED):  # noqa: PLR2004 - backend.MEMBER
                raise TemplateError(f"{'.'.join(where)}: may have no parameter: put {match[0]} into args or env")
            if where[0] not in ("backend", "models", "expected_models", "slurm"):
                raise TemplateError(f"{'.'.join(where)}: may have no parameter, and has {match[0]}")
            if match[2] not in known:
                raise TemplateError(f"{'.'.join(where)}: no parameter is called {match[2]!r}")


def _texts(value: object, where: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """Every text of the tables that are filled in or must not be, and where it stands; an `env`'s names are not filled in."""
    if isinstance(value, str):
        return [(where, value)]
    if isinstance(value, list | tuple):
        return [it for number, inner in enumerate(value) for it in _texts(inner, (*where, str(number)))]
    if isinstance(value, Mapping):
        skipped = ("description", "parameters", "needs", "sleep", "members") if not where else ()
        return [it for name, inner in value.items() if name not in skipped for it in _texts(inner, (*where, str(name)))]
    return []


def _check_env(file: TemplateFile, assigning: str) -> None:
    """Accelerators are the agent's to give.

    Raises:
        TemplateError: A variable says which are a replica's.
    """
    env = file.backend.get("env")
    for name in env if isinstance(env, Mapping) else ():
        if name == assigning or str(name).endswith(ASSIGNED):
            raise TemplateError(f"backend.env.{name}: the agent says which accelerators are a replica's: leave it out")


def _check_args(file: TemplateFile) -> None:
    """No parameter is a program text for an interpreter, and a list of texts stands alone.

    Raises:
        TemplateError: One is.
    """
    args = file.backend.get("args", [])
    if not isinstance(args, list) or not all(isinstance(word, str) for entry in args for word in _words(entry)):
        raise TemplateError("backend.args: must be a list of texts, and of lists of texts")
    command = str(file.backend.get("command", ""))
    try:
        before = shlex.split(command)
    except ValueError as error:
        raise TemplateError(f"backend.command: {error}") from error
    alone = [word for entry in args for word in _words(entry)]
    interprets = any(_INTERPRETER.fullmatch(PurePosixPath(word).name) for word in (*before, *alone))
    for previous, word in zip((*before[-1:], *alone), alone if before else alone[1:], strict=False):
        if interprets and _PROGRAM_FOLLOWS.fullmatch(previous) and _PLACE.search(word):
            raise TemplateError(
                f"backend.args: {word!r} would be a program for an interpreter; give it as an argument of one"
            )
    lists = {name for name, rule in file.parameters.items() if rule.type == "strings"}
    for where, text in _texts(msgspec.to_builtins(file)):
        for match in _PLACE.finditer(text):
            if not match[1] and match[2] in lists and (match[0] != text or "args" not in where):
                raise TemplateError(f"{'.'.join(where)}: {match[2]} is a list: it must be a whole argument of args")


def _words(entry: object) -> Sequence[Any]:
    return entry if isinstance(entry, list) else [entry]


# Judging parameters.


def fault(rule: ParameterRule, value: object) -> str | None:
    """What is wrong with a value; None when nothing is."""
    is_kind = isinstance(value, _KINDS[rule.type]) and isinstance(value, bool) is (rule.type == "boolean")
    if not is_kind or (isinstance(value, list) and not all(isinstance(member, str) for member in value)):
        return f"must be {_SAID[rule.type]}"
    members = value if isinstance(value, list) else [value]
    if len(members) > MOST_LISTED:
        return f"may have {MOST_LISTED} members"
    return next((problem for member in members if (problem := _member_fault(rule, member))), None)


def _member_fault(rule: ParameterRule, member: object) -> str | None:
    if isinstance(member, str) and (problem := text_fault(member, pattern=rule.pattern, allow_dash=rule.allow_dash)):
        return problem
    if rule.choices is not None and member not in rule.choices:
        return f"must be one of {', '.join(map(str, rule.choices))}"
    if isinstance(member, int | float) and rule.minimum is not None and member < rule.minimum:
        return f"must be at least {rule.minimum:g}"
    if isinstance(member, int | float) and rule.maximum is not None and member > rule.maximum:
        return f"must be at most {rule.maximum:g}"
    return None


def text_fault(text: str, *, pattern: str | None = None, allow_dash: bool = False) -> str | None:
    """What keeps a text from being an argument: a server would take one that begins with `-` for a flag."""
    if not text:
        return "must not be empty"
    if len(text) > LONGEST:
        return f"may have {LONGEST} characters"
    if any(letter < " " or "\x7f" <= letter <= "\x9f" or "\ud800" <= letter <= "\udfff" for letter in text):
        return "may have no control characters"
    if text.startswith("-") and not allow_dash:
        return "may not begin with -: a server would take it for a flag"
    if pattern is not None and not re.fullmatch(pattern, text):
        return f"must match {pattern}"
    return None


def judged(file: TemplateFile, given: Mapping[str, object]) -> tuple[dict[str, Value | None], dict[str, str]]:
    """Every parameter's value, its default or None where it is not given; and what is wrong, by name."""
    wrong: dict[str, str] = {}
    values: dict[str, Value | None] = {name: rule.default for name, rule in file.parameters.items()}
    for name, value in given.items():
        rule = file.parameters.get(name)
        if rule is None:
            there = ", ".join(file.parameters) or "none"
            wrong[name] = f"is no parameter of the template; there are: {there}"
        elif value is not None:
            problem = fault(rule, value)
            if problem is None:
                values[name] = value  # type: ignore[assignment] # judged a line above
            else:
                wrong[name] = problem
    for name, rule in file.parameters.items():
        if rule.required and values[name] is None and name not in wrong:
            wrong[name] = "is needed"
    return values, wrong


# Rendering.


def render(file: TemplateFile, values: Values) -> JsonObject:
    """The babysitter's settings, and `sleep` where the template has it. `values` has the parameters and what is built in.

    Raises:
        TemplateError: A parameter that is unset stands where it may not be left out.
    """
    backend: JsonObject = {}
    for name, member in file.backend.items():
        match name:
            case "args":
                backend[name] = [word for entry in member for word in _arguments(entry, values)]
            case "env" if isinstance(member, Mapping):
                backend[name] = {key: it for key, text in member.items() if (it := _entry(text, values)) is not None}
            case "models" if isinstance(member, list):
                backend[name] = [it for text in member if (it := _entry(text, values)) is not None]
            case _ if name in FILLED and isinstance(member, str):
                backend[name] = _entry(member, values)
                if backend[name] is None:
                    raise TemplateError(f"backend.{name}: a parameter in it may be unset: make it required")
            case _:
                backend[name] = member
    lists = {"models": file.models, "expected_models": file.expected_models}
    filled = {name: [it for text in texts if (it := _entry(text, values)) is not None] for name, texts in lists.items()}
    tables = {"metadata": file.metadata, "probes": file.probes, "babysitter": file.babysitter, "limits": file.limits}
    content = {"backend": backend, **filled, **tables, "lora": file.lora, "sleep": file.sleep}
    return {name: value for name, value in content.items() if value}


def render_job(file: TemplateFile, values: Values) -> JsonObject:
    """The options of its job, where a scheduler runs it; one whose parameter is unset is left out."""
    return {name: it for name, text in file.slurm.items() if (it := _entry(text, values)) is not None}


def _arguments(entry: str | list[str], values: Values) -> list[str]:
    """The arguments of one entry of `args`.

    Raises:
        TemplateError: A parameter that is unset stands in no list.
    """
    arguments: list[str] = []
    for word in _words(entry):
        only = _PLACE.fullmatch(word)
        name = only[2] if only and not only[1] else None
        if only and name and only[3]:
            if not isinstance(entry, list):
                raise TemplateError(f"backend.args: {word} belongs into a list of its own")
            if not values.get(name):
                return []
            continue
        value = values.get(name) if name else None
        if isinstance(value, list):
            arguments += value
            continue
        text = _entry(word, values)
        if text is None or (isinstance(entry, list) and value == 0 and name == "accelerators"):
            if isinstance(entry, list):
                return []
            raise TemplateError(f"backend.args: {word} may be unset: put it into a list of its own")
        arguments.append(text)
    return arguments


def _entry(text: object, values: Values) -> Any:
    """`text` with its parameters; None when one of them is unset. What is no text stays as it is."""
    if not isinstance(text, str):
        return text
    if any(not match[1] and values.get(match[2]) is None for match in _PLACE.finditer(text)):
        return None
    return _PLACE.sub(lambda match: match[0][1:-1] if match[1] else _plain(values[match[2]]), text)


def _plain(value: Value | None) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
