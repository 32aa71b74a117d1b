"""PURE. Durations, ages and sizes as people read them."""

from datetime import UTC, datetime

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def duration(seconds: float) -> str:
    """`40ms`, `1.4s`, `12s`, `3m05s`, `2h10m`, `4d03h`."""
    if seconds < 10:  # noqa: PLR2004 - one digit before the point
        return "0s" if seconds <= 0 else f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < MINUTE_S:
        return f"{whole}s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S}m{whole % MINUTE_S:02}s"
    if whole < DAY_S:
        return f"{whole // HOUR_S}h{whole % HOUR_S // MINUTE_S:02}m"
    return f"{whole // DAY_S}d{whole % DAY_S // HOUR_S:02}h"


def moment(text: object) -> float | None:
    """Epoch seconds of an ISO 8601 time or a number; None for anything else. A time without a zone is UTC."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    if not isinstance(text, str):
        return None
    try:
        then = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()


def age(text: object, now: float) -> str:
    """How long ago `text` was; empty when it tells no time."""
    then = moment(text)
    return "" if then is None else duration(now - then)


def size(count: float) -> str:
    """Bytes as `812 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 - the step of these units
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def names(value: object) -> str:
    """A list of names as one text."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else ""
