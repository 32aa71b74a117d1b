"""The compiled data plane: a worker's busiest modules as C extensions, used only if they were made from these sources.

The Python files are the truth, and they are always enough. deploy/python/compile.py makes a build when the suite is
installed; nothing here does. A build lists what it was made from, and is used while all of that is as it was. So a file
that changed or another Python never meets a stale build: it runs the sources, and is right, if not as fast.
"""

import hashlib
import importlib
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder of our packages."""
IN_WHEEL = "_compiled"
FOLDERS = (ROOT / IN_WHEEL, Path(sys.prefix, "lib", "inference-svc"))
"""Where builds lie, each in a folder of its own: an installed wheel brings one along; those of a source tree are in the
Python environment that they were made for."""
LIST = "sources"
"""A build's list of what it was made from."""
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
MODULES = (
    "router.purses",
    "router.counters",
    "router.ledger",
    "router.candidates",
    "router.cold",
    "router.dispatch",
    "router.facts",
    "router.messages.answer",
    "router.messages.request",
    "router.messages.stream",
    "router.outlier",
    "router.owners",
    "router.policy.affinity",
    "router.policy.blocks",
    "router.policy.cache_size",
    "router.policy.cache_type",
    "router.policy.choose",
    "router.policy.cost",
    "router.policy.decision",
    "router.policy.fleet_view",
    "router.policy.least_loaded",
    "router.policy.line",
    "router.policy.models",
    "router.policy.pace",
    "router.policy.placed",
    "router.policy.prefix_index",
    "router.policy.replica_view",
    "router.policy.round_robin",
    "router.policy.session",
    "router.policy.shared",
    "router.policy.slow_start",
    "router.policy.usage",
    "router.policy.wait",
    "router.policy.writing",
    "router.proxy.access_log",
    "router.proxy.answering",
    "router.proxy.answers",
    "router.proxy.attempt",
    "router.proxy.budgets",
    "router.proxy.charged",
    "router.proxy.checks",
    "router.proxy.chunked",
    "router.proxy.connector",
    "router.proxy.cors",
    "router.proxy.downstream",
    "router.proxy.engine",
    "router.proxy.exchange",
    "router.proxy.head",
    "router.proxy.headers",
    "router.proxy.followed",
    "router.proxy.heads",
    "router.proxy.hedged",
    "router.proxy.held",
    "router.proxy.hiding",
    "router.proxy.limits",
    "router.proxy.needs",
    "router.proxy.owned",
    "router.proxy.owner_search",
    "router.proxy.parsing",
    "router.proxy.paths",
    "router.proxy.patient",
    "router.proxy.racing",
    "router.proxy.reading",
    "router.proxy.response_writer",
    "router.proxy.sides",
    "router.proxy.spelling",
    "router.proxy.surviving",
    "router.proxy.timed",
    "router.proxy.translated",
    "router.proxy.translation",
    "router.proxy.tunnel",
    "router.proxy.upload",
    "router.proxy.upstream",
    "router.proxy.watch",
    "router.proxy.websocket",
    "router.retry",
    "router.serves",
    "router.sharing",
    "router.silence",
    "router.streams.continuation",
    "router.streams.hedging",
    "router.streams.joined",
    "router.streams.kept",
)
"""What runs for every request. Nothing in them may need what mypyc leaves out: slots in a dataclass, a non-native base."""


def digest(name: str) -> str:
    """Hash of one of our files, by its path below ROOT; empty if there is none."""
    try:
        return hashlib.sha256((ROOT / name).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def fits(build: Path) -> bool:
    """True if the build is for this interpreter and of the sources as they are."""
    try:
        suffix, *lines = (build / LIST).read_text().splitlines()
    except (OSError, ValueError):
        return False
    return suffix == SUFFIX and all(digest(name) == was for was, _, name in (line.partition(" ") for line in lines))


def builds() -> list[Path]:
    """All that lie in FOLDERS; half-made ones carry a dot."""
    return [build for folder in FOLDERS if folder.is_dir() for build in folder.iterdir() if build.name[:1] != "."]


def find() -> Path | None:
    """The build of these sources, if there is one."""
    return next(filter(fits, builds()), None)


def why_not() -> str:
    """Why workers run the sources, and the remedy, in a line; empty when there is a build of them."""
    if find() is not None:
        return ""
    if (ROOT / "__init__.py").exists():  # inside the package that a wheel installs
        return "installed without compiled modules: reinstall where there is a C compiler (docs/router.md)"
    state = "the sources have changed since they were compiled" if builds() else "the sources were not compiled"
    return f"{state}: script/setup.sh compiles them"


def activate() -> bool:
    """Import the data plane compiled from here on, if it is built; returns whether it is.

    To be called before the first import of `MODULES`.
    """
    build = find()
    if build is None:
        return False
    sys.path.append(str(build))  # for the library that all of them share
    for name in sorted({module.rpartition(".")[0] for module in MODULES}):
        importlib.import_module(name).__path__.insert(0, str(build / name.replace(".", "/")))
    return True
