"""From settings to the parts of a babysitter: policy, addresses, the replica's spec, the probe.

What a deployed client has besides is in client_parts.py.
"""

from __future__ import annotations  # requests are pydantic's, which take long to make: only whoever has one reads them

import hashlib
import json
import math
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import structlog

from babysitter import ports, request_file
from babysitter.backend_settings import BACKEND_LABELS, CbclientBackend, InfinilmRustBackend, VllmBackend
from babysitter.engine_health import EngineHealth
from babysitter.launch import make_command, make_plan
from babysitter.lifecycle import RestartPolicy
from babysitter.lora import LoraRules
from babysitter.peers import load as load_peers
from babysitter.probe import ProcessProbe, ServerProbe
from babysitter.settings import BabysitterSettings, RestartSettings
from babysitter.sleep_rules import SleepRules, rules_of, vllm_rules
from babysitter.slots import Slots
from babysitter.spec import Addresses, JobRules, LogRules, Requested, Spec
from babysitter.token_probe import AUTO, TokenProbe
from common.clock import Clock
from common.discovery.replica import deployment_marks
from common.exits import ConfigurationError
from common.http.access import is_loopback
from common.wire.base import JsonObject
from common.wire.hints import hints_of
from common.wire.record import KEY_LABEL

if TYPE_CHECKING:
    from common.wire.create import Timeouts

log = structlog.get_logger(__name__)
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound
METRICS_PATH = "/metrics"
"""Where vLLM, SGLang and llama.cpp tell of their work."""
FQDN_WAIT_S = 2.0
CRASH_LOOP_EXITS = 5


def settle_host(settings: BabysitterSettings) -> BabysitterSettings:
    """`host` is what is announced. One that is not this machine's (NAT, a bridge) is reached by listening everywhere."""
    host = settings.host
    if host in WILDCARDS or ports.is_here(host):
        return settings
    wildcard = "::" if ":" in host else "0.0.0.0"  # noqa: S104 - the operator announces an address beyond loopback
    log.warning("host.not_of_this_machine", host=host, listens_on=wildcard)
    return settings.model_copy(update={"host": wildcard, "advertise_host": settings.advertise_host or host})


def other_hosts(host: str) -> tuple[str, ...]:
    """Where a babysitter answers besides `host`: this machine's loopback, unless `host` has it already."""
    return () if host in WILDCARDS or is_loopback(host) else ("127.0.0.1",)


def make_policy(settings: BabysitterSettings, asked: Timeouts | None) -> RestartPolicy:
    """When to restart, give up, and distrust; a request's own deadlines are honoured (A10)."""
    restarts, probes = settings.babysitter, settings.probes
    return RestartPolicy(
        restart_first_s=restarts.restart_delay_s,
        restart_last_s=restarts.restart_delay_max_s,
        max_restarts=restarts.max_restarts,
        crash_loop_exits=crash_loop_exits(restarts),
        no_restart_codes=frozenset(restarts.no_restart_codes),
        unhealthy_after=probes.unhealthy_after,
        healthy_after=probes.healthy_after,
        liveness_s=probes.liveness_s,
        startup_timeout_s=(asked.asked("readiness_timeout_s") if asked else None) or probes.readiness_timeout_s,
        port_timeout_s=(asked.asked("port_discovery_timeout_s") if asked else None) or probes.port_timeout_s,
        stall_s=probes.stall_s,
        end_stalled=probes.end_stalled,
        end_late=probes.end_late,
        drain_s=restarts.drain_timeout_s,
    )


def crash_loop_exits(restarts: RestartSettings) -> int:
    """How many failed starts are a crash loop. A number of restarts that somebody chose is given in full before that."""
    if restarts.max_restarts == RestartSettings.model_fields["max_restarts"].default:
        return CRASH_LOOP_EXITS
    return max(CRASH_LOOP_EXITS, restarts.max_restarts + 1)


def make_addresses(settings: BabysitterSettings, port_file: Path | None) -> Addresses:
    """Where the server listens, and what others are told of it (docs/contract.md 5: endpoints have full names)."""
    host = settings.host
    local = WILDCARDS.get(host, host)
    if isinstance(settings.backend, CbclientBackend):
        local = "127.0.0.1"  # its server listens there or everywhere, whatever `host` is
    name = settings.advertise_host or (full_name() if host in WILDCARDS or is_loopback(host) else host)
    return Addresses(
        bind=settings.host,
        local=local,
        record=settings.advertise_host or (name if host in WILDCARDS else host),
        endpoint=name,
        port=settings.port,
        own_port=settings.port + 1,
        port_file=port_file,
        port_in_log=isinstance(settings.backend, InfinilmRustBackend),
        own_scheme="https" if settings.tls_cert_file else "http",
    )


def make_spec(
    settings: BabysitterSettings,
    *,
    environ: Mapping[str, str],
    clock: Clock,
    mark: str,
    addresses: Addresses | None = None,
) -> Spec:
    """The replica that the settings describe; `addresses`, when they are known already.

    Raises:
        ConfigurationError: The command, its directory or the request does not exist or is of no use.
    """
    if (settings.server == "external") is not bool(settings.stop_command):
        raise ConfigurationError(f'{settings.name}: server = "external" and stop_command need each other')
    restarts, probes, jobs, logs = settings.babysitter, settings.probes, settings.jobs, settings.logs
    command, client, run_meta = None, None, jobs.run_meta
    if isinstance(settings.backend, CbclientBackend):
        from babysitter import client_parts  # noqa: PLC0415 - what deploys takes long to import, and few babysitters do

        client = client_parts.read(settings, settings.backend.request, mark=mark, clock=clock, environ=environ)
        asked, requested = client.asked, client.requested
        workdir, stdout, stderr = client.workdir, client.stdout, client.stderr
        run_meta = run_meta or client.run_meta
    else:
        asked, requested = request_file.read(settings.replica_dir) if settings.replica_dir else (None, Requested())
        command = make_command(settings, make_plan(settings), environ)
        workdir = settings.replica_dir.absolute() if settings.replica_dir else command.cwd
        stdout, stderr = command.stdout, command.stderr
    return Spec(
        name=settings.name,
        label=BACKEND_LABELS[settings.backend.type],
        addresses=addresses or make_addresses(settings, workdir / "api_server.json" if client else None),
        policy=make_policy(settings, asked),
        logs=LogRules(stdout, stderr, logs.max_bytes, logs.keep, logs.check_s),
        jobs=JobRules(
            run_meta,
            jobs.cancel_command,
            jobs.cancel_timeout_s,
            jobs.state_command,
            jobs.state_interval_s,
            jobs.state_timeout_s,
            requested.namespace or "",
        ),
        workdir=workdir,
        heartbeat_s=restarts.heartbeat_interval_s,
        start_interval_s=(asked.asked("poll_interval_s") if asked else None) or probes.start_interval_s,
        look_timeout_s=(asked.asked("health_check_timeout_s") if asked else None) or probes.timeout_s,
        interval_s=probes.interval_s,
        grace_s=restarts.stop_grace_s,
        slots=Slots(restarts.start_slots),
        command=command,
        deployer=client.deployer if client else None,
        stop_command=settings.stop_command,
        server_settings=server_settings(settings),
        deploy_mark=mark if client else None,
        venv_path=str(workdir / "cbclient") if client else None,
        metadata={**hints(settings), **settings.metadata, **deployment_marks(requested.metadata)},
        requested=requested,
        lora=LoraRules(settings.lora.adapters, settings.lora.on_demand, settings.lora.max_loaded),
        sleep=make_sleep(settings),
        peers=load_peers(settings.replica_dir) if settings.replica_dir else None,
        weight=settings.weight,
        diagnostics=client is not None and client.diagnostics,
        memory_soft_bytes=_bytes(settings.limits.memory_soft_mb),
        memory_hard_bytes=_bytes(settings.limits.memory_hard_mb),
    )


def make_sleep(settings: BabysitterSettings) -> SleepRules | None:
    """How its server sleeps and wakes; None: it does not."""
    rules = settings.sleep
    if rules.level is None:
        return rules_of(rules.sleep, rules.wake, rules.state) if rules.sleep else None
    if settings.vllm_sleep_level is None:
        log.warning("sleep.not_on_loopback", host=settings.host)
        return None
    return vllm_rules(rules.level)


def server_settings(settings: BabysitterSettings) -> dict[str, str]:
    """A digest of each setting that a start of the server uses: what runs may be older than the file (W31)."""
    names = {"backend", "host", "port", "log_dir", "server"}
    if isinstance(settings.backend, CbclientBackend):
        names.add("cbclient")
    values = settings.model_dump(mode="json", include=names)
    if isinstance(settings.backend, VllmBackend):
        values["lora"] = settings.lora.max_loaded if settings.lora.adapters else 0
        values["sleep"] = settings.vllm_sleep_level is not None
    values["babysitter.stop_grace_s"] = settings.babysitter.stop_grace_s
    return {name: hashlib.sha256(json.dumps(values[name], sort_keys=True).encode()).hexdigest()[:16] for name in values}


def hints(settings: BabysitterSettings) -> JsonObject:
    """What the record says besides what the operator put there."""
    slow_start_s = settings.probes.slow_start_s
    return {
        **({} if slow_start_s is None else {"slow_start_s": slow_start_s}),
        **({"metrics_path": METRICS_PATH} if isinstance(settings.backend, VllmBackend) else {}),
        **({KEY_LABEL: settings.api_key_label or settings.name} if settings.api_key_file is not None else {}),
    }


def make_probe(settings: BabysitterSettings, spec: Spec, session: aiohttp.ClientSession) -> ServerProbe:
    """What asks the server. A release server's replica is ready when its `/health` is 200 (docs/contract.md 5)."""
    is_client = isinstance(settings.backend, CbclientBackend)
    if settings.probes.ready_when != "answers":
        return ProcessProbe(session, spec.look_timeout_s, listens=settings.probes.ready_when == "listens")
    expected = () if is_client else make_plan(settings).expected_models
    own = (spec.requested.model_name,) if spec.requested.model_name else ()
    return ServerProbe(
        session=session,
        timeout_s=spec.look_timeout_s,
        expected=settings.expected_models or expected,
        configured=settings.models or own,
        health_path=settings.probes.health_path or ("/health" if is_client else ""),
        must_have_health=is_client,
        check=spec.peers.check if spec.peers else lambda: None,
    )


def make_engine(settings: BabysitterSettings, spec: Spec, session: aiohttp.ClientSession, clock: Clock) -> EngineHealth:
    """What proves that the server works. A release server's replica is believed without a token, unless a path is named."""
    probes = settings.probes
    is_client = isinstance(settings.backend, CbclientBackend)
    path = "" if is_client and probes.generate_path == AUTO else probes.generate_path
    metrics_path = hints_of(spec.metadata).metrics_path
    if "metrics_path" not in spec.metadata and not is_client:
        metrics_path = METRICS_PATH
    return EngineHealth(
        TokenProbe(session, path),
        session,
        clock=clock,
        metrics_path=metrics_path,
        start_timeout_s=probes.generate_timeout_s,
        # So that a hung one has failed `unhealthy_after` times well before `liveness_s` is over.
        idle_timeout_s=min(probes.generate_timeout_s, (probes.liveness_s or math.inf) / probes.unhealthy_after),
        interval_s=probes.generate_interval_s or None,
    )


def full_name() -> str:
    """This machine's full name; its short one when the resolver does not answer in time."""
    names: list[str] = []
    asking = threading.Thread(target=lambda: names.append(socket.getfqdn()), daemon=True)
    asking.start()
    asking.join(FQDN_WAIT_S)
    return names[0] if names else socket.gethostname()


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes << 20
