"""Print the installed distributions that nothing of the suite needs at run time, one a line: what only built it."""

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(name: str, found: set[str]) -> set[str]:
    """`name` and everything that it requires here."""
    name = canonicalize_name(name)
    if name not in found:
        found.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            extras = requirement.extras or {""}
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras}
            ):
                try:
                    needed(requirement.name, found)
                except metadata.PackageNotFoundError:
                    found.discard(canonicalize_name(requirement.name))  # for another platform, or of an extra
    return found


if __name__ == "__main__":
    kept = needed("inference-svc", set())
    installed = {canonicalize_name(one.metadata["Name"]) for one in metadata.distributions()}
    print("\n".join(sorted(installed - kept)))  # noqa: T201 - a program's answer
