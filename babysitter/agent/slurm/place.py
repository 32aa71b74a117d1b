"""What agent and job tell each other by files of the replica's directory."""

from pathlib import Path

import msgspec

from common.atomic_file import read_bounded

ORDER, WHERE, RECIPE = "job.json", "where.json", "recipe.json"
LIMIT_BYTES = 1 << 20


class Order(msgspec.Struct, kw_only=True):
    """`job.json`: what the job starts. `env` is the agent's; `notice_s` how long before its end it is warned."""

    command: list[str]
    env: dict[str, str]
    host: str
    first_port: int
    last_port: int
    accelerators: int = 0
    notice_s: int = 0


class Where(msgspec.Struct, kw_only=True):
    """`where.json`: the node's address and the server's port there; the babysitter has the next one."""

    job: int
    host: str
    port: int


def read_where(directory: Path) -> Where | None:
    """What the last job said; None when none has."""
    try:
        return msgspec.json.decode(read_bounded(directory / WHERE, limit_bytes=LIMIT_BYTES), type=Where)
    except (OSError, ValueError):
        return None
