"""PURE: the cluster jobs of a server, as its run_meta.json tells them, and the ledger in which they are never lost.

The server writes the file while it runs: it can be missing, half written, left over from an earlier run, huge, or of
another shape. All of these are values here. Ids are kept in the order first seen, per attempt, compile and execute
apart (B14).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from common.wire.replica import JobLedger

LIMIT_BYTES = 1 << 20
ID_LIMIT = 256
JOBS_LIMIT = 10_000
KINDS = {"compile": "compile_jobs", "execute": "execute_jobs"}


@dataclass(frozen=True, slots=True)
class UnusableRunMeta:
    """The file tells nothing now; `reason` is for one warning, not one per look."""

    reason: str


@dataclass(frozen=True, slots=True)
class Jobs:
    """Ids of the jobs, each list in the file's order."""

    compile: tuple[str, ...] = ()
    execute: tuple[str, ...] = ()


def parse(raw: bytes) -> Jobs | UnusableRunMeta:
    """The jobs that the file's content tells."""
    if len(raw) > LIMIT_BYTES:
        return UnusableRunMeta(f"larger than {LIMIT_BYTES} bytes")
    try:
        body = json.loads(raw.decode())
    except (UnicodeDecodeError, ValueError, RecursionError):
        return UnusableRunMeta("no whole JSON (yet)")
    if not isinstance(body, Mapping):
        return UnusableRunMeta(f"holds a {type(body).__name__}, not an object")
    return Jobs(**{kind: _ids(body.get(member)) for kind, member in KINDS.items()})


def _ids(listed: Any) -> tuple[str, ...]:
    """The ids in a list of `{"id": …}` or of bare ids; anything else in it is passed over."""
    if not isinstance(listed, list):
        return ()
    ids = [item.get("id") if isinstance(item, Mapping) else item for item in listed[:JOBS_LIMIT]]
    return tuple(dict.fromkeys(name for name in ids if _is_id(name)))


def _is_id(name: Any) -> TypeGuard[str]:
    return isinstance(name, str) and 0 < len(name) <= ID_LIMIT and name.isprintable() and not name.startswith("-")


class Ledger(JobLedger, frozen=True):
    """Every job of every attempt, in the order of the attempts; what `add` and the canceller note stands in its tables."""

    def add(self, attempt: str, jobs: Jobs) -> bool:
        """Note the jobs that are new; those of an earlier attempt stay that attempt's. True when there was any."""
        new = False
        for kind, ids in (("compile", jobs.compile), ("execute", jobs.execute)):
            noted = set(self.all(kind))
            fresh = [name for name in ids if name not in noted]
            if fresh:
                self.attempts.setdefault(attempt, {}).setdefault(kind, []).extend(fresh)
                new = True
        return new

    def all(self, kind: str) -> tuple[str, ...]:
        """Ids of one kind, of all attempts, first seen first."""
        return tuple(name for jobs in self.attempts.values() for name in jobs.get(kind, ()))

    def orphans(self, alive: str | None) -> tuple[str, ...]:
        """Jobs of attempts other than `alive` for which no cancel was begun."""
        over = [jobs for attempt, jobs in self.attempts.items() if attempt != alive]
        ids = [name for jobs in over for kind in KINDS for name in jobs.get(kind, ())]
        return tuple(name for name in dict.fromkeys(ids) if name not in self.cancelled)
