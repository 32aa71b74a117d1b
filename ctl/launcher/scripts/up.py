"""launch_registry.sh, launch_router.sh, launch_agent.sh, launch_babysitter.sh, launch_all.sh."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from common.exits import Exit
from ctl import api
from ctl.api import Api
from ctl.launcher import launch, plan, variables
from ctl.launcher.launch import CannotStart, Launch
from ctl.launcher.plan import AGENT, BABYSITTER, REGISTRY, ROUTER, BabysitterFile, Part
from ctl.launcher.scripts import Script, Stop, say, warn
from ctl.launcher.variables import Variables, WrongVariable
from ctl.live import board
from ctl.output import Output
from ctl.problem import Problem
from ctl.table import visible

LOCK_PATIENCE_S = 600.0
SERVER_TIMEOUT_S = 60
SERVICES = (REGISTRY, ROUTER, AGENT)
DEFAULT_CONFIGS = ("babysitter1.toml", "babysitter2.toml")
DEVICES = ("HPCC_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
TEMPLATE = {
    "--name": "SERVICE_NAME",
    "--max-restarts": "MAX_RESTARTS",
    "--restart-delay": "RESTART_DELAY",
    "--heartbeat-interval": "HEARTBEAT_INTERVAL",
}
TEMPLATE_INFINILM = {
    "--dev": "DEV",
    "--ndev": "NDEV",
    "--max-batch": "MAX_BATCH",
    "--request-timeout": "REQUEST_TIMEOUT",
    "--max-tokens": "MAX_TOKENS",
    "--max-concurrency": "MAX_CONCURRENCY",
    "--model-name": "MODEL_NAME",
    "--launch-script": "LAUNCH_SCRIPT",
}
WHOLE_NUMBERS = ("MAX_RESTARTS", "NDEV", "MAX_BATCH", "MAX_TOKENS", "REQUEST_TIMEOUT", "MAX_CONCURRENCY")


async def bring_up(script: Script, parts: Sequence[Part], then: Callable[[Api, Launch], Awaitable[int]]) -> int:
    """Start the parts, wait for them, and do what comes `then`; what this run started ends if any of it fails."""
    values = script.variables
    environ = {**script.environ, **{name: values.text(name) for name in DEVICES if values.text(name)}}
    timeout_s = values.number("BABYSITTER_WAIT_TIMEOUT", SERVER_TIMEOUT_S)
    run = Launch(script.state, environ, timeout_s, script.root, for_scripts=True)
    run.state.prepare()
    async with run.state.locked(LOCK_PATIENCE_S), api.connect(script.tls) as calls:
        try:
            with board(Output(sys.stdout, sys.stdout, as_json=False)) as shown:
                await launch.bring_up(calls, run, parts, shown)
            for failure in run.failed:
                tell_failure(failure)
            for name in run.loading:
                warn(
                    f"{name}: its server is still starting: a large model may take long, but a reason that stays the same "
                    "does not go away by itself; look again with ./script/status.sh"
                )
            return await then(calls, run)
        except (Problem, Stop, asyncio.CancelledError, KeyboardInterrupt):
            if run.started:
                warn("stopping what this run started")
                launch.undo(run, lambda one, how: warn(f"{one.name}: {how}"), script.stop_timeout_s)
            raise


def tell_failure(failure: CannotStart) -> None:
    """Why a part did not come up, with the end of its log."""
    if failure.tail:
        warn(f"--- the last words of {failure.part.name}:")
        warn("\n".join(f"    {visible(line)}" for line in failure.tail))
    warn(f"error: {visible(failure.line())}")


async def service(script: Script, kind: str) -> int:
    """The registry, the router or the agent alone."""

    async def then(_calls: Api, _run: Launch) -> int:
        return Exit.OK

    return await bring_up(script, [variables.service(kind, script.variables)], then)


async def template(script: Script) -> int:
    """launch_babysitter.sh: one server, by the script's block."""
    part = template_part(script.variables)

    async def then(_calls: Api, run: Launch) -> int:
        if run.failed:
            raise Stop(run.failed[0].ended_with)
        say(f"Try: curl {part.url}/health")
        return Exit.OK

    return await bring_up(script, [part], then)


def template_part(values: Variables) -> Part:
    """The babysitter of launch_babysitter.sh's block.

    Raises:
        WrongVariable: A variable cannot be used.
    """
    port, host = values.port("PORT", 8100), values.text("HOST", "localhost")
    service_type = values.text("SERVICE_TYPE", "InfiniLM")
    for name in WHOLE_NUMBERS:
        values.whole_number(name, 0)
    for name in ("RESTART_DELAY", "HEARTBEAT_INTERVAL"):
        values.number(name, 0)
    kind = service_type.lower()
    served = values.text("MODEL_PATH")
    if kind == "infinilm-rust":
        served = values.text("CONFIG_FILE", served)
        if not Path(served).is_file():
            raise WrongVariable(f"CONFIG_FILE: there is no file '{served}'; set it to the server's TOML file")
    elif kind == "infinilm" and not Path(served).exists():
        raise WrongVariable(f"MODEL_PATH: there is no '{served}'; set it to the model's folder")
    values = values.with_(
        BABYSITTER_REGISTRY_URL=values.text("BABYSITTER_REGISTRY_URL", values.text("REGISTRY_URL", "none")),
        BABYSITTER_ROUTER_URL=values.text("BABYSITTER_ROUTER_URL", values.text("ROUTER_URL", "none")),
        LAUNCH_SCRIPT=from_here(values.text("LAUNCH_SCRIPT")),
    )
    args = ["--port", str(port), "--service-type", service_type, "--path", from_here(served), *values.flags(TEMPLATE)]
    if kind == "infinilm":
        args += values.flags(TEMPLATE_INFINILM) + ["--awq"] * values.is_true("AWQ", default=False)
    elif kind != "infinilm-rust":
        args += values.flags({"--model-name": "MODEL_NAME"})
    name, spoken = values.text("SERVICE_NAME", f"infinilm-{kind}-{port}"), plan.scheme(BABYSITTER, values.values)
    return variables.babysitter(values, BabysitterFile("", name, port, host, scheme=spoken), [*args, "--host", host])


def from_here(path: str) -> str:
    """The babysitter works in the project's folder; what is named is named from where the caller is."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path


async def everything(script: Script, files: Sequence[str]) -> int:
    """launch_all.sh: `files` are BABYSITTER_CONFIGS where that is an array."""
    values = script.variables
    has_tls = plan.scheme(REGISTRY, values.values) == "https"
    if has_tls or values.text("REGISTRY_HOST") or values.text("REGISTRY_PORT"):
        # Babysitters follow a registry placed here; otherwise the registry_url of their file holds.
        url = values.text("BABYSITTER_REGISTRY_URL", values.registry_url)
        values = values.with_(BABYSITTER_REGISTRY_URL=url)
    services = {kind: variables.service(kind, values) for kind in SERVICES}
    parts = [part for kind, part in services.items() if values.is_true(variables.LAUNCHED[kind], default=True)]
    left_out: list[str] = []
    if values.is_true("LAUNCH_BABYSITTER", default=True):
        parts += babysitters(replace(script, variables=values), parts, files or config_names(values), left_out)

    async def then(calls: Api, run: Launch) -> int:
        out = [*left_out, *(f"{server_of(one.part)} (port {one.part.ports[0]})" for one in run.failed)]
        if len(run.failed) == len(parts) > 0:
            raise Stop(run.failed[-1].ended_with)
        if reason := await launch.routed(calls, run, services[ROUTER].patience_s):
            warn(f"router: {reason}; do the babysitters and the router use the same registry?")
        await tell_next_steps(calls, values, parts)
        if not out:
            return Exit.OK
        warn(f"error: not running: {', '.join(out)}. Everything else goes on; mend it (see above) and run this again")
        return Exit.PARTLY

    return await bring_up(script, parts, then)


def server_of(part: Part) -> str:
    """The name of a babysitter's server."""
    return part.serves.partition(" at ")[0]


def config_names(values: Variables) -> list[str]:
    """Names in BABYSITTER_CONFIGS. Bash exports no arrays, so one that was exported comes as nothing, or as "()"."""
    text = values.text("BABYSITTER_CONFIGS").strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    if names := text.replace('"', "").split():
        return names
    first, second = DEFAULT_CONFIGS
    say(
        f"BABYSITTER_CONFIGS names no file, so config/{first} and {second} are started, which are mock servers as they "
        'come. For yours: BABYSITTER_CONFIGS="a.toml b.toml" ./script/launch_all.sh (one string: bash exports no arrays)'
    )
    return list(DEFAULT_CONFIGS)


def babysitters(script: Script, before: Sequence[Part], names: Sequence[str], left_out: list[str]) -> list[Part]:
    """A part for each file. One that is of no use is told, and goes to `left_out`.

    Raises:
        Stop: Every one of them is.
    """
    parts: list[Part] = []
    for name in names:
        try:
            part = babysitter(script, name)
            for _, clash in plan.clashes([*before, *parts, part]):
                raise Stop(Exit.CONFIG, f"error: {clash}")
            parts.append(part)
        except Stop as useless:
            warn("\n".join(useless.lines))
            left_out.append(name)
    if not parts:
        raise Stop(Exit.CONFIG)
    return parts


def babysitter(script: Script, name: str) -> Part:
    """The part of a file: looked for as given, then under the project, then under config/.

    Raises:
        Stop: There is none, or it is of no use.
    """
    root = script.root
    places = (Path(name), root / name, root / "config" / name, root / "config" / f"{name}.toml")
    path = next((str(place.resolve()) for place in places if place.is_file()), None)
    if path is None:
        reason = f"there is no file '{name}' here, under {root} or under {root}/config"
        raise Stop(Exit.CONFIG, f"error: BABYSITTER_CONFIGS: {reason}")
    return variables.babysitter(script.variables, script.read(path), ["--config-file", path])


async def tell_next_steps(calls: Api, values: Variables, parts: Sequence[Part]) -> None:
    """What to try now."""
    urls = {part.kind: part.url.replace("127.0.0.1", "localhost") for part in parts if part.kind in SERVICES}
    lines = ["", "The node runs. Try:"]
    if REGISTRY in urls:
        lines += [f"  curl {values.registry_url}{path}" for path in ("/health", "/services")]
    if ROUTER in urls:
        lines += [f"  curl {urls[ROUTER]}{path}" for path in ("/health", "/models")]
        for model in await models_of(calls, urls[ROUTER]):
            lines += [
                f"  curl -N {urls[ROUTER]}/chat/completions -H 'Content-Type: application/json' \\",
                f'    -d \'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}\'',
            ]
    if AGENT in urls:
        lines.append(f"  curl {urls[AGENT]}/api/v1/replicas")
    say("\n".join([*lines, "Status: ./script/status.sh    Stop: ./script/stop_all.sh    Logs: logs/"]))


async def models_of(calls: Api, url: str) -> list[str]:
    """The models listed at `url`; none where nobody tells."""
    try:
        return sorted(await launch.models(calls, url))
    except Problem:
        return []
