"""What the scripts ask of Python: read a configuration, wait for readiness, show the status. Not every machine has curl.

    helper.py config FILE                        print `PORT HOST NAME` of a babysitter's file
    helper.py wait NAME PID SECONDS CHECK…       exit 0 ready, 1 time is up, 2 the process ended, 3 it has failed
    helper.py models URL                         print the ids listed at URL/models
    helper.py stop-replicas URL SECONDS          stop every replica of the agent at URL, and wait
    helper.py count-replicas URL                 tell how many replicas go on without it
    helper.py variables                          name the SVC_… variables that nobody reads
    helper.py status NAME,PID,PORT,URL …         print the table of status.sh

Checks are `url URL` (PID listens there and it answers 200), `server URL` (the babysitter at URL says that its server is ready) and
`routed URL FROM…` (the router at URL lists the models of every babysitter FROM).
"""

import difflib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

POLL_S = 0.1
PROGRESS_S = 5.0
CALL_TIMEOUT_S = 3.0
READY, TIME_IS_UP, ENDED, FAILED = range(4)
CONFIG_FAULT = 78
LISTENING = "0A"
"""State of a listening socket in /proc/net/tcp."""

# The machines' proxy variables are meant for the outside world.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class NotYet(Exception):
    """Not ready; the text says what is missing."""


class Guarded(NotYet):
    """It asks for a token or a key that we do not have."""


class Hopeless(Exception):
    """It will not become ready by waiting."""


def get(url: str, **headers: str) -> Any:
    """The JSON that `url` answers, whatever its status.

    Raises:
        NotYet: It does not answer, or not with JSON.
        Guarded: It wants to know who asks.
    """
    try:
        with _open(urllib.request.Request(url, headers=headers), timeout=CALL_TIMEOUT_S) as answer:  # noqa: S310 - our own
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                raise Guarded(f"{url} answers {error.code}") from None
            try:
                return json.load(error)
            except ValueError:
                raise NotYet(f"{url} answers {error.code}") from None
    except (OSError, ValueError) as error:
        raise NotYet(f"{url}: {getattr(error, 'reason', error)}") from None


def check_url(pid: int, url: str) -> None:
    """`url` answers 200, and it is `pid` that listens there."""
    if not listens(pid, urlsplit(url).port or 80):
        raise NotYet("it does not listen yet")
    try:
        with _open(url, timeout=CALL_TIMEOUT_S) as answer:
            if answer.status != HTTPStatus.OK:
                raise NotYet(f"{url} answers {answer.status}")
    except OSError as error:
        raise NotYet(f"{url}: {getattr(error, 'reason', error)}") from None


def check_server(_pid: int, url: str) -> None:
    """The babysitter at `url` says that its server is ready."""
    health = get(f"{url}/health")
    status, reason = health.get("status"), health.get("error_message") or ""
    if status == "healthy":
        return
    if status in {"failed", "stopped"}:
        raise Hopeless(f"its server has {status}: {reason}")
    raise NotYet(f"its server is {status}" + (f": {reason}" if reason else ""))


def check_routed(_pid: int, url: str, *babysitters: str) -> None:
    """The router at `url` lists the models of every babysitter. One that asks for a key cannot be looked into."""
    try:
        listed = models_at(url)
    except Guarded:
        sys.stdout.write("  router: it asks for an API key, so whether it routes to every server was not checked\n")
        return
    for babysitter in babysitters:
        missing = models_at(babysitter) - listed
        if missing:
            raise NotYet(f"the router does not list {', '.join(sorted(missing))} yet")


def models_at(url: str) -> set[str]:
    """Ids of the models listed at `url`/models; a server that has none yet has none."""
    answer = get(f"{url}/models")
    return {str(model["id"]) for model in answer.get("data", [])} if isinstance(answer, dict) else set()


CHECKS: dict[str, Callable[..., None]] = {"url": check_url, "server": check_server, "routed": check_routed}


def is_alive(pid: int) -> bool:
    """The process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listens(pid: int, port: int) -> bool:
    """The process, or a child of it, listens on `port`: a stranger's answer there proves nothing about ours."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    family = [str(pid)]
    with suppress(OSError):
        family += Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for member in family:
        with suppress(OSError):
            for descriptor in Path(f"/proc/{member}/fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()) in sockets:
                        return True
    return False


def wait(name: str, pid: int, timeout_s: float, check: str, *args: str) -> int:
    """Repeat a check until it holds; tells every few seconds what is missing, a reason of many lines (a log's end) once."""
    told: set[str] = set()
    began = time.monotonic()
    next_word_s = PROGRESS_S
    while True:
        alive = is_alive(pid)
        reason = "it has ended"
        if alive:
            try:
                CHECKS[check](pid, *args)
            except NotYet as error:
                reason = str(error)
            except Hopeless as error:
                sys.stderr.write(f"{name}: {error}\n")
                return FAILED
            else:
                return READY
        waited_s = time.monotonic() - began
        if not alive:
            return ENDED
        if waited_s >= timeout_s:
            short = reason.partition("\n")[0]
            sys.stderr.write(f"{name}: not ready after {waited_s:.0f} s: {short if short in told else reason}\n")
            return TIME_IS_UP
        if waited_s >= next_word_s:
            short = reason.partition("\n")[0]
            sys.stdout.write(f"  {name}: waiting, {waited_s:.0f} s: {short if short in told else reason}\n")
            sys.stdout.flush()
            told.add(short)
            next_word_s += PROGRESS_S
        time.sleep(POLL_S)


def config(file: str) -> int:
    """Print port, host and name of a babysitter's file, or what is wrong with it."""
    from babysitter.settings import SettingsError, parse  # noqa: PLC0415 - the other commands start without packages

    try:
        found = parse(["--config-file", file], os.environ)
    except SettingsError as error:
        sys.stderr.writelines(f"error: {line}\n" for line in str(error).splitlines())
        return CONFIG_FAULT
    sys.stdout.write(f"{found.port} {found.host} {found.name}\n")
    return READY


def variables() -> int:
    """Name the `SVC_…` variables that no part of the suite reads."""
    from babysitter.agent.settings import AgentSettings  # noqa: PLC0415 - as above
    from babysitter.settings import BabysitterSettings  # noqa: PLC0415
    from common.settings import SERVICE_PREFIXES, Settings, unknown_variables  # noqa: PLC0415
    from registry.settings import RegistrySettings  # noqa: PLC0415
    from router.settings import RouterSettings  # noqa: PLC0415

    models: tuple[type[Settings], ...] = (RegistrySettings, RouterSettings, BabysitterSettings, AgentSettings)
    strange: dict[str, list[str]] = {}
    for prefix, model in zip(SERVICE_PREFIXES, models, strict=True):
        for name, meant in unknown_variables(model, prefix, os.environ).items():
            strange.setdefault(name, []).extend([meant] if meant else [])
    for name, known in sorted(strange.items()):
        closest = "".join(f"; did you mean {meant}?" for meant in difflib.get_close_matches(name, known, n=1))
        sys.stderr.write(f"warning: nobody reads {name}{closest}\n")
    return READY


def status(*rows: str) -> int:
    """Print one line for each process; 0 when all are healthy."""
    table = [("PROCESS", "PID", "PORT", "HEALTH", "MODELS")]
    healthy = True
    for row in rows:
        name, pid, port, url = row.split(",")
        health, models = describe(name, url) if pid else ("not running", "")
        healthy = healthy and health in {"healthy", "running"}
        table.append((name, pid or "-", port, health, models))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n")
    return READY if healthy else TIME_IS_UP


def describe(name: str, url: str) -> tuple[str, str]:
    """Health and models of a process that runs."""
    try:
        told = get(f"{url}/health")
        health, older = str(told.get("status", "?")), told.get("need_restart") or []
        models = "" if name in {"registry", "agent"} else ", ".join(sorted(models_at(url)))
        reason = str(told.get("error_message") or "").partition("\n")[0] if health != "healthy" else ""
        refused = told.get("config_refused")
        notes = [f"settings older than its file: {', '.join(older)}"] * bool(older) + [reason] * bool(reason)
        notes += [f"its file has a fault and is not in force: {refused}"] * bool(refused)
        return health, f"{models} ({'; '.join(notes)})".lstrip() if notes else models
    except Guarded:
        return health, "(asks for a key)"
    except NotYet as error:
        return f"no answer ({error})", ""


def agent_headers() -> dict[str, str]:
    """What the agent wants to see before it answers, if `SVC_AGENT_API_TOKEN_FILE` names its token."""
    file = os.environ.get("SVC_AGENT_API_TOKEN_FILE")
    return {"Authorization": f"Bearer {Path(file).read_text().strip()}"} if file else {}


def replicas(url: str) -> list[str]:
    """Ids of the agent's replicas that are not stopped.

    Raises:
        NotYet: The agent does not tell.
    """
    try:
        answer = get(f"{url}/api/v1/replicas", **agent_headers())
    except Guarded:
        raise NotYet("the agent asks for its token: set SVC_AGENT_API_TOKEN_FILE to the file it is in") from None
    if not isinstance(answer, dict) or "replicas" not in answer:
        raise NotYet(f"{url} does not list its replicas: {answer}")
    return [str(it["replica_id"]) for it in answer["replicas"] if it["status"] != "stopped"]


def stop_replicas(url: str, timeout_s: str) -> int:
    """Stop every replica of an agent; 0 when all have stopped in time."""
    deadline = time.monotonic() + float(timeout_s)
    try:
        for replica in replicas(url):
            call = urllib.request.Request(f"{url}/api/v1/replicas/{replica}/stop", data=b"{}", method="POST")  # noqa: S310 - the agent's own URL
            call.add_header("Content-Type", "application/json")
            for name, value in agent_headers().items():
                call.add_header(name, value)
            with _open(call, timeout=CALL_TIMEOUT_S):
                sys.stdout.write(f"replica {replica}: stopping\n")
        while (left := replicas(url)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    except (OSError, NotYet) as error:
        sys.stderr.write(f"replicas: {error}\n")
        return TIME_IS_UP
    if left:
        sys.stderr.write(f"replicas: {', '.join(left)} did not stop within {timeout_s} s\n")
    return TIME_IS_UP if left else READY


def count_replicas(url: str) -> int:
    """Say how many replicas go on without their agent."""
    try:
        left = replicas(url)
    except (OSError, NotYet) as error:
        sys.stdout.write(f"agent: how many replicas go on without it is not known: {error}\n")
        return TIME_IS_UP
    if left:
        sys.stdout.write(f"agent: {len(left)} replicas go on without it; STOP_REPLICAS=true stops them\n")
    return READY


def models(url: str) -> int:
    """Print the ids listed at `url`/models."""
    try:
        sys.stdout.writelines(f"{model}\n" for model in sorted(models_at(url)))
    except NotYet as error:
        sys.stderr.write(f"{error}\n")
        return TIME_IS_UP
    return READY


def main() -> int:
    """Dispatch; every argument is text that the scripts have checked."""
    command, *args = sys.argv[1:]
    if command == "wait":
        name, pid, timeout_s, check, *rest = args
        return wait(name, int(pid), float(timeout_s), check, *rest)
    commands: dict[str, Callable[..., int]] = {
        "config": config,
        "models": models,
        "status": status,
        "variables": variables,
        "stop-replicas": stop_replicas,
        "count-replicas": count_replicas,
    }
    return commands[command](*args)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
