"""`svcctl apply|run`: say what should run, from a fleet file or from flags."""

import json
import tomllib
from argparse import ArgumentParser
from typing import Any

from common.wire.base import JsonObject
from common.wire.deployment import DeploymentChange, TemplateInfo
from ctl import answers, completers
from ctl.api import Api
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.commands.replicas_wait import add_wait_flags
from ctl.commands.request import read_table
from ctl.deployments import path_of, until_ready
from ctl.fleet_file import UnusableFleet, deployments, parameters, replica_range, spec_faults
from ctl.problem import Problem
from ctl.views import deployments as views

CALL_TIMEOUT_S = 30.0


def add_apply(parser: ArgumentParser) -> None:
    """Flags of `apply`."""
    file = parser.add_argument(
        "-f", "--file", metavar="FILE", required=True, help="the fleet file, YAML, TOML or JSON; - is standard input"
    )
    completers.attach(file, completers.files("yaml", "yml", "toml", "json"))
    parser.add_argument("--diff", action="store_true", help="only show what would change")
    add_wait_flags(parser, "until all are ready (or cold, with min 0)")


def add_run(parser: ArgumentParser) -> None:
    """Flags of `run`."""
    parser.add_argument("name", metavar="NAME", help="the deployment's name")
    template = parser.add_argument("--template", metavar="NAME", required=True, help="what to run ('svcctl templates')")
    completers.attach(template, completers.templates)
    parser.add_argument(
        "--set", action="append", default=[], metavar="K=V", dest="sets", help="a parameter of the template; repeatable"
    )
    parser.add_argument("--model", metavar="NAME", help="the name that clients ask for (default: the deployment's)")
    parser.add_argument("--accelerators", type=int, metavar="N", help="for each replica (default: the template's)")
    parser.add_argument(
        "--followers", type=int, metavar="N", help="of a group, beside the leader (default: the template's)"
    )
    parser.add_argument("--memory-mb", type=int, metavar="MB", help="of a shared accelerator (default: the template's)")
    parser.add_argument("--replicas", metavar="N|A..B", default="1", help="how many (default: 1); 0..2: on demand")
    parser.add_argument("--idle", type=float, metavar="S", help="replicas go after so long without a request")
    parser.add_argument("--node", action="append", default=[], metavar="NAME", help="only there; repeatable")
    parser.add_argument("--priority", type=int, metavar="P", help="the higher has accelerators first (default: 0)")
    parser.add_argument("--diff", action="store_true", help="only show what would change")
    add_wait_flags(parser, "until it is ready (or cold, with 0..N)")


async def apply(call: Call) -> int:
    """Check all of a fleet file, then put it."""
    specs = read_fleet(call.args.file)
    async with call.connect() as calls:
        return await put(call, calls, specs)


async def run(call: Call) -> int:
    """One deployment from flags."""
    name = call.args.name
    async with call.connect() as calls:
        spec = await spec_of(call, calls)
        if faults := spec_faults(spec):
            raise Problem(f"{name}: {'; '.join(faults)}", code=Code.USAGE)
        return await put(call, calls, {name: spec})


async def put(call: Call, calls: Api, specs: dict[str, JsonObject]) -> int:
    """Dry runs of all, and only if none was refused the real ones.

    Raises:
        Problem: A dry run was refused, and nothing is changed; or a real one, which says what was applied and what not.
    """
    planned = await _dry_runs(call, calls, specs)
    done: list[JsonObject] = []
    for name, spec in specs.items():
        answer = planned[name]
        would = answers.read(DeploymentChange, answer)
        if not call.args.diff and would.change != "unchanged":
            # What the dry run saw must still be there: somebody else's change is not overwritten.
            seen = {"If-Match": str(would.version - 1)}
            try:
                answer = await calls.call(
                    call.registry, "PUT", path_of(name), body=spec, headers=seen, timeout_s=CALL_TIMEOUT_S
                )
            except Problem as problem:
                applied, left = ", ".join(list(specs)[: len(done)]), ", ".join(list(specs)[len(done) :])
                text = f"{name}: {problem.message}; applied: {applied or 'none'}; not applied: {left}"
                raise Problem(text, hint=problem.hint, code=problem.code) from problem
        done.append(answer)
        change = answers.read(DeploymentChange, answer)
        if not call.out.as_json:
            for line in views.change(change, with_diff=call.args.diff):
                call.out.line(line)
        for warning in change.warnings:
            call.out.note(f"{name}: {warning}", "yellow")
    if call.args.diff:
        call.out.note("nothing is changed: --diff only shows")
    elif call.args.wait:
        await until_ready(call, calls, list(specs), may_be_cold=True)
    if call.out.as_json:
        call.out.document({"dry_run": call.args.diff, "changes": done})
    return Code.OK


async def _dry_runs(call: Call, calls: Api, specs: dict[str, JsonObject]) -> dict[str, JsonObject]:
    planned: dict[str, JsonObject] = {}
    problems: list[tuple[str, Problem]] = []
    for name, spec in specs.items():
        try:
            planned[name] = await calls.call(
                call.registry, "PUT", path_of(name), body=spec, params={"dry_run": "true"}, timeout_s=CALL_TIMEOUT_S
            )
        except Problem as problem:
            if problem.code is Code.UNREACHABLE:
                raise
            problems.append((name, problem))
    for name, fault in problems[1:]:
        call.out.note(f"{name}: {fault.message}", "bold red")
    if problems:
        name, fault = problems[0]
        raise Problem(f"{name}: {fault.message}", hint="nothing is changed", code=fault.code)
    return planned


async def spec_of(call: Call, calls: Api) -> JsonObject:
    """The specification that the flags of `run` give.

    Raises:
        Problem: A flag cannot be read.
    """
    args = call.args
    try:
        replicas = replica_range(args.replicas)
        schema = await _schema(call, calls, args.template) if args.sets else {}
        spec: JsonObject = {"template": args.template, "replicas": replicas}
        if args.sets:
            spec["parameters"] = parameters(args.sets, schema)
    except ValueError as error:
        raise Problem(str(error), code=Code.USAGE) from error
    said: dict[str, Any] = {
        "model": args.model,
        "accelerators": args.accelerators,
        "followers": args.followers,
        "memory_mb": args.memory_mb,
        "idle_s": args.idle,
        "priority": args.priority,
        "placement": {"nodes": args.node} if args.node else None,
    }
    return {**spec, **{key: value for key, value in said.items() if value is not None}}


async def _schema(call: Call, calls: Api, template: str) -> JsonObject:
    """The template's schema; empty where nobody tells it: then values are taken as they look, and the registry judges."""
    try:
        answer = await calls.get(call.api, "/api/v1/templates")
    except Problem as problem:
        if problem.code is Code.UNREACHABLE:
            raise
        return {}
    found = answers.items(TemplateInfo, answer, "templates")
    return next((one.parameters for one in found if one.name == template and one.parameters), {})


def read_fleet(file: str) -> dict[str, JsonObject]:
    """A fleet file's specifications, by name.

    Raises:
        Problem: It cannot be read, or has an error.
    """
    if file.endswith(".toml"):
        try:
            with open(file, "rb") as opened:  # noqa: PTH123 - as tomllib's own example
                content = tomllib.load(opened)
        except OSError as error:
            raise Problem(f"{file}: {error.strerror}", code=Code.CONFIG) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(f"{file}: no valid TOML: {error}", code=Code.CONFIG) from error
    else:
        content = read_table(file)
    try:
        found = deployments(content)
        json.dumps(found, allow_nan=False)
    except (UnusableFleet, TypeError, ValueError) as error:
        raise Problem(
            f"{file}: {'; '.join(str(error).splitlines())}", hint="nothing is changed", code=Code.CONFIG
        ) from error
    return found


COMMANDS = (
    Command(
        "apply",
        apply,
        add_apply,
        details="All of them are checked first: a file with an error changes nothing. Deployments that the file does not\n"
        "name stay. Prints for each: created, rolls (what runs is replaced), updated (nothing restarts) or unchanged.",
        examples=("svcctl apply -f fleet.yaml --diff", "svcctl apply -f fleet.yaml --wait --timeout 600"),
    ),
    Command(
        "run",
        run,
        add_run,
        details="With --replicas 0..N nothing runs until somebody asks for its model.",
        examples=(
            "svcctl run qwen --template vllm --set model=Qwen/Qwen2.5-7B-Instruct --accelerators 1 --replicas 0..2 --idle 900",
            "svcctl run tiny --template mock --set start_delay_s=3 --wait",
        ),
    ),
)
