"""stop_registry.sh, stop_router.sh, stop_agent.sh, stop_babysitter.sh [PORT|NAME], stop_all.sh; status.sh."""

from common.http.access import read_token
from ctl import api
from ctl.api import Place
from ctl.commands.status import look
from ctl.launcher import processes, stop
from ctl.launcher.plan import AGENT, BABYSITTER, REGISTRY, ROUTER
from ctl.launcher.scripts import Script, Stop, say, tell_ended, warn
from ctl.launcher.scripts.up import models_of
from ctl.launcher.state_dir import Launched
from ctl.problem import Problem


async def down(script: Script, what: str, word: str = "") -> int:
    """End what is of this kind, or `all`; `word` is a babysitter's port or the name of its server."""
    state = script.state
    clean = True
    for kind in stop.ORDER:
        if what not in (kind, "all"):
            continue
        group = [one for one in state.all() if one.kind == kind and (not word or one.is_called(word))]
        if not group and word:
            raise Stop(1, f"error: no babysitter with the port or name '{word}' was launched from {script.root}")
        if not group:
            say("babysitters: none runs" if kind == BABYSITTER else f"{kind}: not running")
        elif kind == AGENT and processes.find(group[0]) is not None:
            clean = await replicas(script, group[0]) and clean
        clean = processes.end(group, state, script.stop_timeout_s, tell_ended) and clean
    return 0 if clean else 1


async def replicas(script: Script, agent: Launched) -> bool:
    """Stop the agent's replicas where STOP_REPLICAS says so, else tell that they go on; False when they did not stop."""
    values = script.variables
    file = values.text("SVC_AGENT_API_TOKEN_FILE")
    to_stop = values.is_true("STOP_REPLICAS", default=False)
    place = Place(
        "the agent", (agent.url,), "", read_token(script.root / file) if file else None, "SVC_AGENT_API_TOKEN_FILE"
    )
    async with api.connect(script.tls) as calls:
        try:
            if to_stop:
                await stop.stop_replicas(calls, place, script.stop_timeout_s, say)
            elif count := len(await stop.alive(calls, place)):
                say(f"agent: {count} replicas go on without it; STOP_REPLICAS=true stops them")
        except Problem as problem:
            warn(f"replicas: {problem.line()}")
            return not to_stop
    return True


async def status(script: Script) -> int:
    """status.sh: a part that was left out or stopped is not missed, unless nothing runs at all."""
    here = sorted(script.state.all(), key=lambda one: (stop.ORDER[::-1].index(one.kind), one.name))
    table = [("PROCESS", "PID", "PORT", "HEALTH", "MODELS")]
    well = bool(here)
    async with api.connect(script.tls) as calls:
        for one in here:
            seen = await look(calls, one)
            models = ", ".join(await models_of(calls, one.url)) if seen.pid and one.kind in (ROUTER, BABYSITTER) else ""
            detail = f"({seen.detail})" if seen.detail and one.kind == BABYSITTER else ""
            shown = f"{seen.health} ({seen.detail})" if seen.health == "no answer" else seen.health
            port = str(one.own_port or "-")
            table.append((one.name, str(seen.pid or "-"), port, shown, f"{models} {detail}".strip()))
            well = well and seen.well
    if not here:
        table += [(kind, "-", "-", "not running", "") for kind in (REGISTRY, ROUTER)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0 if well else 1
