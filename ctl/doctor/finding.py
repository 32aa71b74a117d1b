"""PURE. What a check found: a verdict, what was seen, and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ctl.table import TextTable


class Verdict(StrEnum):
    """How bad it is. Only a fault makes `doctor` fail."""

    OK = "ok"
    SKIPPED = "skipped"
    WARN = "warn"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result."""

    check: str
    verdict: Verdict
    seen: str
    remedy: str = ""


def ok(check: str, seen: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, seen)


def skipped(check: str, seen: str) -> Finding:
    """There is nothing to look at."""
    return Finding(check, Verdict.SKIPPED, seen)


def warn(check: str, seen: str, remedy: str) -> Finding:
    """It works, but not for long or not well."""
    return Finding(check, Verdict.WARN, seen, remedy)


def fault(check: str, seen: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(check, Verdict.FAULT, seen, remedy)


def table(findings: Sequence[Finding]) -> TextTable:
    """One row for each check."""
    rows = [(one.verdict.value, one.check, one.seen, one.remedy) for one in findings]
    return TextTable(("", "CHECK", "SEEN", "WHAT TO DO"), rows, states=frozenset({""}))


def summary(findings: Sequence[Finding]) -> str:
    """The whole in a sentence."""
    faults = sum(one.verdict is Verdict.FAULT for one in findings)
    warnings = sum(one.verdict is Verdict.WARN for one in findings)
    if not faults and not warnings:
        return f"all well: {len(findings)} checks"
    counts = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in ((faults, "fault"), (warnings, "warning"))]
    return " and ".join(text for text in counts if not text.startswith("0")) + f" in {len(findings)} checks"
