"""Makes the views of a replica: what its machine, its server, its watcher, its jobs and its registry come to at one moment."""

from dataclasses import replace

from msgspec import UNSET

from babysitter.adapters import AdapterKeeper
from babysitter.fitting import names
from babysitter.home import Home
from babysitter.job_keeper import JobKeeper
from babysitter.lifecycle import ALIVE, Lifecycle, ReplicaState
from babysitter.memory import Memory
from babysitter.server_runner import ServerRunner
from babysitter.spec import Spec
from babysitter.view import Moment, View, make_report
from babysitter.watcher import ServerWatcher


class Viewer:
    """Looks up what can be looked up; what is only told once is kept here, by `note`."""

    def __init__(
        self,
        memory: Memory,
        home: Home,
        runner: ServerRunner,
        watcher: ServerWatcher,
        *,
        jobs: JobKeeper,
        adapters: AdapterKeeper,
        now: str,
    ) -> None:
        self._memory = memory
        self._home = home
        self._runner = runner
        self._watcher = watcher
        self._jobs = jobs
        self._adapters = adapters
        self._noted = Moment(port=watcher.port, updated_at=now)

    def note(self, **changes: object) -> None:
        """Members of `Moment` that are so from now on."""
        self._noted = replace(self._noted, **changes)  # type: ignore[arg-type] # names are checked by replace

    def view(self, spec: Spec, life: Lifecycle) -> View:
        """The replica now."""
        runner, watcher = self._runner, self._watcher
        is_alive = life.state in ALIVE
        server = runner.attempt.server if runner.attempt is not None and is_alive else None
        now = replace(
            self._noted,
            port=watcher.port,
            replica_pid=None if server is None else server.pid,
            need_restart=sorted({*self._noted.need_restart, *(runner.outdated if is_alive else ())}),
            persist_failed=self._home.state.failure,
            wsjob_states=self._jobs.states,
            rss_mb=watcher.memory_mb,
            degraded=watcher.is_degraded,
            work=watcher.work if is_alive else None,
            adapters=self._adapters.states() or UNSET,
        )
        return View(
            spec=spec,
            state=life.state,
            report=make_report(spec, life, self._memory, now),
            models=self._memory.models,
            loadable=self._adapters.loadable(names(self._memory.models)),
            serves=server is not None or (runner.external.is_detached and is_alive),
            settling=runner.is_adopted and life.state is ReplicaState.WAITING_FOR_READY and life.error is None,
        )
