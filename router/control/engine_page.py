"""PURE. Many engines' pages as one: each family once, and every sample with the `replica` that it is of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.exposition import Family, Sample

LABEL = "replica"
_MOVED = "exported_"
"""What Prometheus puts before a label whose name it needs itself."""


@dataclass(slots=True)
class _Merged:
    kind: str = ""
    help: str = ""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Name and line of each sample."""
    is_disputed: bool = False


class EnginePage:
    """Takes pages, and gives them as one."""

    def __init__(self) -> None:
        self._families: dict[str, _Merged] = {}

    def add(self, families: Mapping[str, Family], replica: str) -> None:
        """One engine's page. A family that two engines call different types is of none."""
        own = f'{LABEL}="{_escaped(replica)}"'
        for name, family in families.items():
            into = self._families.setdefault(name, _Merged())
            into.is_disputed |= bool(into.kind and family.kind and into.kind != family.kind)
            into.kind = into.kind or family.kind
            into.help = into.help or family.help
            into.lines += [(sample.name, _line(sample, own)) for sample in family.samples]

    def render(self) -> str:
        """All of it, in Prometheus' text form."""
        parts: list[str] = []
        for name, family in sorted(self._families.items()):
            if not family.lines:
                continue
            if family.help:
                parts.append(f"# HELP {name} {family.help}\n")
            if family.is_disputed:
                family.lines.sort(key=lambda line: line[0])  # as what it now is: families of one name each
                parts.append(f"# TYPE {name} untyped\n")
            elif family.kind:
                parts.append(f"# TYPE {name} {family.kind}\n")
            parts += [line for _, line in family.lines]
        return "".join(parts)


def _line(sample: Sample, own: str) -> str:
    names = {name for name, _ in sample.pairs}
    labels = [own]
    for name, said in sample.pairs:
        if name == LABEL:
            name = _MOVED + name  # noqa: PLW2901 - another name for the same
            while name in names:
                name = _MOVED + name  # noqa: PLW2901
        labels.append(f'{name}="{said}"')
    return f"{sample.name}{{{','.join(labels)}}} {sample.tail}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
