"""The deployment of a client: stages with durations and progress, each bounded, any of which may be cut by kill -9.

`resolve` (versions, wheels, files) · `venv` · `install` · `verify`. The environment is built beside its place and
renamed, an identical one is reused, and nothing that was cut is ever used.
"""

import asyncio
import errno
import json
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from packaging.requirements import Requirement

from babysitter.attempt import ServerCommand
from babysitter.cbclient import tool, wheels
from babysitter.cbclient.environments import Environments, link
from babysitter.cbclient.index_check import examine
from babysitter.cbclient.packages import EnvironmentSpec, PipFault, Step, fault_of, key, split_index
from babysitter.cbclient.params import effective_config
from babysitter.cbclient.request import CheckedRequest
from babysitter.cbclient.rules import Resolved, Rules
from babysitter.cbclient.server import make_command
from babysitter.cbclient.stage_reporter import StageReporter
from babysitter.cbclient.versions import TagError, canonical, has_client_package, image, version_of, wheel_names
from babysitter.cbclient.wheels import WheelError
from babysitter.spec import DeployError
from common.atomic_file import write_atomic
from common.clock import Clock, iso
from common.wire.base import JsonObject
from common.wire.replica import Stage
from common.wire.words import StageState

LAST_RETRY_DELAY_S = 60.0
OWN = "own"
"""Key of an environment that is the operator's, not ours."""
FULL = (errno.ENOSPC, errno.EDQUOT)
UNSURE = ("not_found", "index_unreachable", "failed")
"""Faults that pip reports for most troubles of an index: the index is asked for the real one."""


class ClientDeployer:
    """Deploys one replica's client and makes its server's command.

    Args:
        request: What the client asked for.
        workdir: The replica's directory, `{root}/{id}`.
        port: The server's port.
        rules: The operator's settings.
        mark: Carried by every tool, so that a later babysitter finds those that outlived this one.
        clock: Time.
        environ: The babysitter's environment.
    """

    def __init__(
        self,
        request: CheckedRequest,
        workdir: Path,
        port: int,
        rules: Rules,
        *,
        mark: str,
        clock: Clock,
        environ: Mapping[str, str],
    ) -> None:
        self._request = request
        self._workdir = workdir.absolute()
        self._port = port
        self._rules = rules
        self._mark = mark
        self._clock = clock
        self._environ = environ
        self._environments = Environments(self._workdir.parent)
        self._tell: Callable[[Stage], None] = lambda _stage: None

    @property
    def model_dir(self) -> Path:
        """Where the server keeps its models and logs."""
        return Path(self._config(None)["runconfig"]["model_dir"])

    async def deploy(self, tell: Callable[[Stage], None]) -> ServerCommand:
        """Make the environment and the files; returns the server's command.

        Raises:
            DeployError: A stage failed for good, or the disk refused something between two of them.
        """
        self._tell = tell
        try:
            return await self._deploy(tell)
        except OSError as error:
            raise DeployError(f"deploy: {_refusal(error)}") from error

    async def _deploy(self, tell: Callable[[Stage], None]) -> ServerCommand:
        resolved: Resolved = await self._stage("resolve", self._resolve)
        if resolved.prefix is not None:
            await asyncio.to_thread(link, self._workdir, resolved.prefix)
            for name in ("venv", "install"):
                tell(
                    Stage(
                        name=name,
                        state=StageState.REUSED,
                        began_at=iso(self._clock.utcnow()),
                        detail=f"the node's own: {resolved.prefix}",
                    )
                )
            return await self._verified(resolved)
        async with self._environments.building(resolved.key) as fresh:
            if self._environments.is_complete(resolved.key):
                for name in ("venv", "install"):
                    detail = "an identical environment is there"
                    tell(Stage(name=name, state=StageState.REUSED, began_at=iso(self._clock.utcnow()), detail=detail))
            else:
                await self._stage("venv", lambda say: self._make_venv(fresh, say))
                lock: bytes = await self._stage("install", lambda say: self._install(resolved.spec, fresh, say))
                await asyncio.to_thread(self._environments.finish, resolved.key, fresh, lock)
            link(self._workdir, self._environments.path(resolved.key))  # in here, where nobody can collect it
        await asyncio.to_thread(self._environments.collect)
        return await self._verified(resolved)

    def existing(self) -> ServerCommand | None:
        """The command when everything is deployed already, None when something is missing. Runs no tool."""
        try:
            resolved = self._resolve_now()
        except (DeployError, OSError):
            return None
        complete = resolved.prefix is not None or self._environments.is_complete(resolved.key)
        if not complete or not (self._workdir / "cbclient").exists():
            return None
        try:
            return self._command(resolved)
        except (DeployError, OSError):
            return None

    async def _resolve(self, say: Callable[[str], None]) -> Resolved:
        resolved = await asyncio.to_thread(self._resolve_now)
        await asyncio.to_thread(self._write_params, resolved)
        say(f"{resolved.spec.version or 'given wheel'}, environment {resolved.key}")
        return resolved

    def _resolve_now(self) -> Resolved:
        client = self._request.cbclient_config
        tag = self._request.app_tag
        client_version = client.client_version if client else None
        own_wheel = None
        try:
            if client is not None and client.cbclient_whl:
                own_wheel = wheels.check_allowed(Path(client.cbclient_whl), self._allowed())
            of_wheel = wheels.version_in(own_wheel) if own_wheel else None
            named = client_version or tag or of_wheel
            if named is None and self._rules.own_python:
                return Resolved(EnvironmentSpec(None, client=False), OWN, None, Path(self._rules.python).parent.parent)
            if named is None:
                raise DeployError(
                    "resolve: the request names no app_tag, client_version or wheel (cbclient.own_python = true runs such"
                    " a request with cbclient.python)"
                )
            version = version_of(named)
            appliance = wheels.find(self._rules.roots, wheel_names(version))
            hashes = [wheels.sha256(path) for path in (own_wheel, appliance) if path is not None]
        except (TagError, WheelError) as error:
            raise DeployError(f"resolve: {error}") from error
        spec = EnvironmentSpec(
            version=version,
            client=has_client_package(named),
            client_wheel=str(own_wheel) if own_wheel else None,
            client_matches=of_wheel is None or canonical(of_wheel) == canonical(version),
            appliance_wheel=str(appliance) if appliance else None,
            custom=client.custom_requirements if client else (),
        )
        interpreter = f"{platform.python_implementation()}-{platform.python_version()}-{self._rules.python}"
        index = split_index(self._rules.index_url).url
        name = image(self._rules.image_registry, tag) if self._rules.image_registry and tag else None
        return Resolved(spec, key(spec, python=interpreter, index=index, hashes=hashes), name)

    def _allowed(self) -> list[Path]:
        roots = self._rules.roots
        places = (roots.workspace, roots.artifact_cache, roots.release_stage)
        return [*self._rules.wheel_dirs, *(path for path in places if path is not None)]

    def _config(self, image_name: str | None) -> JsonObject:
        return effective_config(self._request, workdir=PurePosixPath(self._workdir), image=image_name)

    def _write_params(self, resolved: Resolved) -> None:
        config = self._config(resolved.image)
        Path(config["runconfig"]["model_dir"]).mkdir(parents=True, exist_ok=True)
        write_atomic(self._workdir / "params.yaml", yaml.safe_dump(config, sort_keys=False).encode())
        write_atomic(self._workdir / "full_config.json", json.dumps(config, indent=1).encode())

    async def _make_venv(self, fresh: Path, say: Callable[[str], None]) -> None:
        client = self._request.cbclient_config
        uv = shutil.which("uv", path=self._environ.get("PATH")) if client and client.use_uv else None
        make = (
            [uv, "venv", "--no-project", "--no-config", "--allow-existing", "--python", self._rules.python]
            if uv
            else []
        )
        argv = [*make, str(fresh)] if uv else [self._rules.python, "-m", "venv", "--without-pip", str(fresh)]
        say("uv venv" if uv else "python -m venv")
        done = await tool.run(argv, env=self._tool_env(None), timeout_s=self._rules.stage_timeout_s, on_line=say)
        if done.code != 0:
            raise _Failed(fault_of(done.output), done.output)

    async def _install(self, spec: EnvironmentSpec, fresh: Path, say: Callable[[str], None]) -> bytes:
        """Run pip step by step; returns the lock: what was installed, from where, with its hash."""
        extra = fresh / ".deploy"
        extra.mkdir(mode=0o700, exist_ok=True)
        index = split_index(self._rules.index_url)
        netrc = None
        if index.login is not None:
            netrc = extra / "netrc"
            host, user, password = index.login
            write_atomic(netrc, f"machine {host} login {user} password {password}\n".encode())
        words, variables = await asyncio.to_thread(tool.pip_command, self._rules.python)
        env = {**self._tool_env(netrc), **variables}
        lock: list[str] = []
        for number, step in enumerate(spec.steps()):
            report, constraints = extra / f"report-{number}.json", extra / f"constraints-{number}.txt"
            constraints.write_text("".join(f"{line}\n" for line in spec.constraints(step)))
            options = tool.pip_arguments(
                index=index.url,
                trusted_hosts=self._rules.trusted_hosts,
                venv_python=fresh / "bin" / "python",
                constraints=constraints,
                report=report,
                only_binary=self._rules.only_binary,
            )
            targets = await asyncio.to_thread(_targets, step, extra)
            argv = [*words, *options, *([] if step.dependencies else ["--no-deps"]), "--", *targets]
            say(f"{step.name}: {', '.join(step.requirements) or step.wheels[0]}")
            done = await tool.run(argv, env=env, timeout_s=self._rules.stage_timeout_s, on_line=say)
            if done.code != 0:
                raise _Failed(await self._examined(fault_of(done.output), step), done.output)
            lock += await asyncio.to_thread(_locked, report)
        await asyncio.to_thread(shutil.rmtree, extra)
        return "".join(f"{line}\n" for line in sorted(lock)).encode()

    async def _examined(self, fault: PipFault, step: Step) -> PipFault:
        """The fault after a look at the index: to pip, one that cannot be reached looks like one without the package."""
        if fault.word not in UNSURE or not step.requirements:
            return fault
        package, index = Requirement(step.requirements[0]).name, split_index(self._rules.index_url)
        return await asyncio.to_thread(examine, index, package, ca_file=self._rules.ca_file) or fault

    async def _verified(self, resolved: Resolved) -> ServerCommand:
        command: ServerCommand = await self._stage("verify", lambda _say: asyncio.to_thread(self._command, resolved))
        return command

    def _command(self, resolved: Resolved) -> ServerCommand:
        runconfig = self._config(resolved.image)["runconfig"]
        return make_command(
            self._request,
            self._rules,
            workdir=self._workdir,
            port=self._port,
            spec=resolved.spec,
            image=runconfig.get("cbcore_image"),
            skip_version_check=bool(runconfig.get("disable_version_check")),
            environ=self._environ,
        )

    def _tool_env(self, netrc: Path | None) -> dict[str, str]:
        return tool.environment(self._environ, mark=self._mark, netrc=netrc, ca_file=self._rules.ca_file)

    async def _stage(self, name: str, work: Callable[[Callable[[str], None]], Any]) -> Any:
        """Run one stage with retries and report its progress; raises `DeployError` when it fails for good."""
        for attempt in range(1, self._rules.tries + 1):
            stage = StageReporter(name, attempt, self._tell, self._clock, self._workdir / "deploy.log")
            try:
                result = await work(stage.say)
            except _Failed as error:
                last = attempt == self._rules.tries or not error.fault.retry
                stage.end(StageState.FAILED if last else StageState.RUNNING, f"{error.fault.word}: {error.last_line}")
                if last:
                    raise DeployError(f"{name}: {error.fault.word}: {error.last_line}") from error
                await asyncio.sleep(min(LAST_RETRY_DELAY_S, self._rules.retry_delay_s * attempt))
            except DeployError as error:
                stage.end(StageState.FAILED, str(error))
                raise
            except OSError as error:
                stage.end(StageState.FAILED, _refusal(error))
                raise DeployError(f"{name}: {_refusal(error)}") from error
            else:
                stage.end(StageState.DONE, None)
                return result
        raise DeployError(f"{name}: no try is allowed")


class _Failed(Exception):
    """A tool failed."""

    def __init__(self, fault: PipFault, output: str) -> None:
        super().__init__(fault.word)
        self.fault = fault
        lines = [line for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line or "error" in line]
        self.last_line = fault.text or (errors or lines or ["no output"])[-1].strip()


def _refusal(error: OSError) -> str:
    """The fault's word, and what the disk said."""
    return f"{'no_space' if error.errno in FULL else 'failed'}: {error}"


def _targets(step: Step, extra: Path) -> list[str]:
    """What pip is given to install: requirements, and local wheels under the names that pip takes."""
    try:
        return [*step.requirements, *(str(wheels.stage(Path(path), extra / "wheels")) for path in step.wheels)]
    except WheelError as error:
        raise DeployError(f"install: {error}") from error


def _locked(report: Path) -> list[str]:
    """`name==version sha256` of everything that a pip run installed, from its report."""
    pip_report = json.loads(report.read_bytes())
    lines = []
    for item in pip_report.get("install", []):
        metadata = item.get("metadata", {})
        digest = item.get("download_info", {}).get("archive_info", {}).get("hashes", {}).get("sha256", "")
        lines.append(f"{metadata.get('name')}=={metadata.get('version')} sha256:{digest}")
    return lines
