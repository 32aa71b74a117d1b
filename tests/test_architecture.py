"""Who may import what, and what PURE modules may do: held by reading every module."""

import ast
import fnmatch
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("babysitter", "ctl", "registry", "router")
SHARED = "common"

PURE = (
    "babysitter/agent/accelerators.py",
    "babysitter/agent/changes.py",
    "babysitter/agent/model.py",
    "babysitter/agent/patience.py",
    "babysitter/agent/picture.py",
    "babysitter/agent/port_plan.py",
    "babysitter/agent/slurm/job.py",
    "babysitter/agent/template_file.py",
    "babysitter/agent/template_shown.py",
    "babysitter/backends/*.py",
    "babysitter/backoff.py",
    "babysitter/cbclient/modes.py",
    "babysitter/cbclient/packages.py",
    "babysitter/cbclient/params.py",
    "babysitter/cbclient/versions.py",
    "babysitter/engine_metrics.py",
    "babysitter/events.py",
    "babysitter/fitting.py",
    "babysitter/group.py",
    "babysitter/job_states.py",
    "babysitter/last_words.py",
    "babysitter/lifecycle.py",
    "babysitter/lora.py",
    "babysitter/machine.py",
    "babysitter/memory.py",
    "babysitter/mock/answers.py",
    "babysitter/port_finder.py",
    "babysitter/records.py",
    "babysitter/run_meta.py",
    "babysitter/sleep_rules.py",
    "babysitter/stages.py",
    "babysitter/started_with.py",
    "babysitter/start_trace.py",
    "babysitter/template.py",
    "babysitter/transitions.py",
    "babysitter/view.py",
    "common/discovery/model_list.py",
    "common/discovery/plan.py",
    "common/discovery/replica.py",
    "common/exits.py",
    "common/exposition.py",
    "common/leases.py",
    "common/names.py",
    "ctl/answers.py",
    "ctl/convert.py",
    "ctl/doctor/finding.py",
    "ctl/doctor/judge.py",
    "ctl/from_configs.py",
    "ctl/launcher/plan.py",
    "ctl/launcher/variables.py",
    "ctl/refusal.py",
    "ctl/sse.py",
    "ctl/table.py",
    "ctl/views/*.py",
    "common/settings_text.py",
    "common/span.py",
    "common/tokens.py",
    "common/wire/__init__.py",
    "common/wire/address.py",
    "common/wire/audit.py",
    "common/wire/babysitter.py",
    "common/wire/base.py",
    "common/wire/fault.py",
    "common/wire/group.py",
    "common/wire/hints.py",
    "common/wire/keys.py",
    "common/wire/leases.py",
    "common/wire/lora.py",
    "common/wire/models.py",
    "common/wire/read.py",
    "common/wire/record.py",
    "common/wire/registry.py",
    "common/wire/replica.py",
    "common/wire/router.py",
    "common/wire/stream.py",
    "common/wire/usage.py",
    "common/wire/words.py",
    "registry/core/catalogue.py",
    "registry/core/expiry.py",
    "registry/core/ownership.py",
    "registry/core/pacing.py",
    "registry/core/report.py",
    "registry/fleet/index.py",
    "registry/fleet/placement.py",
    "registry/fleet/replicas.py",
    "registry/http/origin.py",
    "registry/keys/model.py",
    "registry/outbound/addresses.py",
    "registry/probes/schedule.py",
    "registry/usage/pages.py",
    "registry/views/targets.py",
    "registry/deployments/crew.py",
    "registry/deployments/demand.py",
    "registry/deployments/evict.py",
    "registry/deployments/fit.py",
    "registry/deployments/board.py",
    "registry/deployments/fold.py",
    "registry/deployments/intake.py",
    "registry/deployments/model.py",
    "registry/deployments/sight.py",
    "registry/deployments/stored.py",
    "registry/deployments/tally.py",
    "registry/deployments/timing.py",
    "registry/deployments/planner.py",
    "registry/deployments/standing.py",
    "router/purses.py",
    "router/admission.py",
    "router/candidates.py",
    "router/cold.py",
    "router/control/engine_page.py",
    "router/control/traffic.py",
    "router/control/views.py",
    "router/directory.py",
    "router/dispatch.py",
    "router/body.py",
    "router/facts.py",
    "router/form.py",
    "router/keys.py",
    "router/ledger.py",
    "router/messages/*.py",
    "router/outlier.py",
    "router/policy/*.py",
    "router/replica_keys.py",
    "router/proxy/answers.py",
    "router/proxy/chunked.py",
    "router/proxy/cors.py",
    "router/proxy/headers.py",
    "router/proxy/limits.py",
    "router/proxy/paths.py",
    "router/proxy/quoted.py",
    "router/proxy/spelling.py",
    "router/proxy/stream_end.py",
    "router/proxy/websocket.py",
    "router/retry.py",
    "router/serves.py",
    "router/shares.py",
    "router/silence.py",
    "router/streams/*.py",
    "router/urlencoded.py",
)
"""Modules that decide and touch nothing. A module whose docstring says PURE belongs here, and the other way round."""

NOT_IN_PURE = {"aiohttp", "asyncio", "logging", "os", "psutil", "pydantic", "random", "socket", "structlog", "subprocess", "threading", "time"}  # fmt: skip

READS_THE_PROCESS = {
    "babysitter/agent/slurm/node.py": "a program of its own, which a job of Slurm runs",
    "babysitter/shim.py": "a program of its own, started without the suite's packages",
    "common/service.py": "starts every service",
    "common/systemd.py": "what systemd tells a process is in its environment",
    "router/worker_main.py": "a process of its own, whose arguments are descriptors from the master",
}
"""Who reads argv and environment besides `__main__`, and why."""


@cache
def modules() -> tuple[Path, ...]:
    """Every module of the product, relative to the root."""
    found = [path.relative_to(ROOT) for room in (*ROOMS, SHARED) for path in (ROOT / room).rglob("*.py")]
    return tuple(sorted(found))


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(), str(module))


def dotted(module: Path) -> str:
    parts = module.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def names() -> dict[str, Path]:
    return {dotted(module): module for module in modules()}


@cache
def imports(module: Path) -> tuple[str, ...]:
    """Every name that `module` imports, absolute; for the type checker only counts too, as a reader has to follow it.

    `from a import b` gives `a.b` when that is a module, else `a`.
    """
    found: list[str] = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are written absolute"
            base = node.module or ""
            found.extend(f"{base}.{alias.name}" if f"{base}.{alias.name}" in names() else base for alias in node.names)
    return tuple(dict.fromkeys(found))


def is_pure(module: Path) -> bool:
    return any(fnmatch.fnmatch(str(module), pattern) for pattern in PURE)


def pure_modules() -> list[Path]:
    return [module for module in modules() if is_pure(module)]


def ours(module: Path) -> Iterator[Path]:
    """Modules of the project that `module` imports."""
    for name in imports(module):
        if name in names():
            yield names()[name]


def test_rooms_import_common_and_themselves_only() -> None:
    faults = [
        f"{module} imports {name}"
        for module in modules()
        for name in imports(module)
        if name.split(".")[0] in {*ROOMS, "tests", "bench"} and name.split(".")[0] != module.parts[0]
    ]
    assert faults == []


def test_no_circle_of_imports() -> None:
    graph = {str(module): {str(other) for other in ours(module) if other != module} for module in modules()}
    graphlib.TopologicalSorter(graph).prepare()


INNER_ROOMS = {
    "registry": ("core", "store", "outbound", "probes", "fleet", "deployments", "keys", "usage", "views", "http", ""),
}
"""Folders of a room, the lowest first; "" is the room's own folder. Each imports itself and those below it."""


@pytest.mark.parametrize("room", INNER_ROOMS)
def test_inner_rooms_import_downward_only(room: str) -> None:
    def level(module: Path) -> int:
        return INNER_ROOMS[room].index(module.parts[1] if len(module.parts) > 2 else "")

    here = [module for module in modules() if module.parts[0] == room]
    faults = [
        f"{module} imports {name}"
        for module in here
        for name in imports(module)
        if names().get(name) in here and level(names()[name]) > level(module)
    ]
    assert faults == []


def test_nobody_imports_a_main_module() -> None:
    faults = [f"{module} imports {name}" for module in modules() for name in imports(module) if "__main__" in name]
    assert faults == []


@pytest.mark.parametrize("pattern", PURE)
def test_every_pure_entry_names_a_module_that_exists(pattern: str) -> None:
    assert any(fnmatch.fnmatch(str(module), pattern) for module in modules())


def test_pure_modules_import_nothing_that_acts() -> None:
    faults = [
        f"{module} imports {name}"
        for module in pure_modules()
        for name in imports(module)
        if name.split(".")[0] in NOT_IN_PURE
    ]
    assert faults == []


def test_a_module_that_calls_itself_pure_is_held_to_it() -> None:
    claimed = [module for module in modules() if "PURE" in (ast.get_docstring(tree(module)) or "").split("\n\n")[0]]
    assert [str(module) for module in claimed if not is_pure(module)] == []


def test_only_main_modules_read_argv_and_environment() -> None:
    faults = []
    for module in modules():
        if module.name == "__main__.py" or str(module) in READS_THE_PROCESS:
            continue
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                word = f"{node.value.id}.{node.attr}"
                if word in {"sys.argv", "os.environ", "os.environb", "os.getenv"}:
                    faults.append(f"{module}:{node.lineno} reads {word}")
            elif isinstance(node, ast.ImportFrom) and node.module in {"os", "sys"}:
                taken = {alias.name for alias in node.names} & {"argv", "environ", "environb", "getenv"}
                faults.extend(f"{module}:{node.lineno} imports {name}" for name in taken)
    assert faults == []


def test_bodies_of_requests_are_read_by_the_one_reader_that_refuses_a_member_twice_W1() -> None:
    shortcuts = {"json", "post", "multipart"}
    found = [
        f"{module}:{node.lineno}"
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and node.attr in shortcuts
        if isinstance(node.value, ast.Name) and node.value.id == "request"
    ]
    assert found == []  # common/http/errors.py has read_json_object


def test_every_exception_to_the_rules_is_needed() -> None:
    for module in READS_THE_PROCESS:
        text = (ROOT / module).read_text()
        assert "sys.argv" in text or "os.environ" in text


def test_every_module_says_what_it_is_for() -> None:
    assert [str(module) for module in modules() if not ast.get_docstring(tree(module))] == []


def test_every_folder_of_tests_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


IMPORT_EACH_ALONE = """
import gc, importlib, os, sys, traceback
gc.disable()
# Once for all; ours are imported by each child alone.
import aiohttp.web, argcomplete, httptools, msgspec, packaging.requirements, prometheus_client, psutil, pydantic
import python_multipart, rich.console, rich.live, rich.table, structlog, uvloop, xxhash, yaml
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit("cannot be imported alone: " + ", ".join(failed) if failed else 0)
"""


@pytest.mark.world  # half a minute for what the test of circles shows but for names that are not there
@pytest.mark.timeout(400)  # a process for each of some 350
def test_every_module_can_be_imported_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH_ALONE, *names()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
