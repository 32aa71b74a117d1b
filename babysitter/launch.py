"""From settings to the command that the shim runs: the backend's plan, checked against this machine."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from babysitter import infinilm_places
from babysitter.attempt import ServerCommand
from babysitter.backend_settings import (
    CbclientBackend,
    CommandBackend,
    InfinilmBackend,
    InfinilmRustBackend,
    MockBackend,
    VllmBackend,
)
from babysitter.backends import command, infinilm, mock, vllm
from babysitter.backends.plan import LaunchContext, LaunchPlan
from babysitter.settings import BabysitterSettings
from common import own_python
from common.exits import ConfigurationError
from common.http.access import read_credential

OWN_PREFIX = "SVC_"
"""Variables of the suite's own settings; tokens may be among them, and no server needs them (B18)."""


def make_plan(settings: BabysitterSettings) -> LaunchPlan:
    """The command of the configured backend.

    Raises:
        ConfigurationError: The backend has no command, or its script is nowhere.
    """
    service = LaunchContext(
        name=settings.name,
        host=settings.host,
        port=settings.port,
        python=sys.executable,
        project=own_python.SEARCH,
    )
    backend = settings.backend
    match backend:
        case CommandBackend():
            return command.plan(command=backend.command, args=backend.args, env=backend.env, work_dir=backend.work_dir)
        case VllmBackend():
            return vllm.plan(
                service,
                model=backend.model,
                args=backend.args,
                env=backend.env,
                work_dir=backend.work_dir,
                adapters=settings.lora.max_loaded if settings.lora.adapters else 0,
                sleeps=settings.vllm_sleep_level is not None,
            )
        case MockBackend():
            return mock.plan(service, models=backend.models, args=backend.args, env=backend.env)
        case InfinilmBackend():
            script, work_dir = infinilm_places.find_script(backend)
            return infinilm.plan_python(
                service,
                script=str(script),
                model_path=backend.model_path,
                args=backend.args,
                env=backend.env,
                work_dir=str(work_dir),
            )
        case InfinilmRustBackend():
            config = Path(backend.config_file).expanduser()
            here = backend.work_dir is None and config.is_file()  # a checkout that it may have to run in is elsewhere
            return infinilm.plan_rust(
                service,
                config_file=str(config.absolute() if here else config),
                env=backend.env,
                work_dir=backend.work_dir,
            )
        case CbclientBackend():
            raise ConfigurationError(f"{settings.name}: a cbclient server has no command before it is deployed")


def make_command(settings: BabysitterSettings, plan: LaunchPlan, environ: Mapping[str, str]) -> ServerCommand:
    """What the shim runs.

    Raises:
        ConfigurationError: The program, the working directory or the key file is of no use; names it.
    """
    work_dir = (Path(plan.work_dir).expanduser() if plan.work_dir else settings.replica_dir or Path.cwd()).absolute()
    if not work_dir.is_dir():
        raise ConfigurationError(f"{settings.name}: work_dir {work_dir} is not a directory")
    if not plan.argv:
        raise ConfigurationError(f"{settings.name}: the command is empty")
    env = {name: value for name, value in environ.items() if not name.startswith(OWN_PREFIX)} | dict(plan.env)
    argv = plan.argv
    if isinstance(settings.backend, InfinilmRustBackend):
        env = infinilm_places.with_cargo(env)
        argv, checkout = infinilm_places.rust_command(argv, settings.backend, env)
        work_dir = checkout or work_dir
    if isinstance(settings.backend, VllmBackend) and settings.api_key_file is not None:
        env.setdefault("VLLM_API_KEY", read_credential(settings.api_key_file).removeprefix("Bearer "))
    program = argv[0]
    looked_at = str(work_dir / program) if "/" in program else program
    program_path = shutil.which(looked_at, path=env.get("PATH", os.defpath))
    if program_path is None:
        where = f"in {work_dir}" if "/" in program and not program.startswith("/") else "on PATH"
        raise ConfigurationError(
            f"{settings.name}: command {program!r} does not exist {where} or cannot be run; install it, "
            "or give its whole path (a virtual environment's is FOLDER/bin/PROGRAM)"
        )
    log_dir = settings.log_dir.absolute()
    return ServerCommand(
        argv=(program_path, *argv[1:]),
        env=env,
        cwd=work_dir,
        stdout=log_dir / f"server_{settings.name}_stdout.log",
        stderr=log_dir / f"server_{settings.name}_stderr.log",
        grace_s=settings.babysitter.stop_grace_s,
        detaches=settings.server == "external",
    )
