"""PURE: what pip is asked to install, in which order, and what its failures mean (docs/contract.md 5; E5, B15)."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from packaging.requirements import InvalidRequirement, Requirement

from babysitter.cbclient.versions import canonical

CLIENT = "cerebras-pytorch"
WITH_DEPENDENCIES = ("cerebras-inference-api-server", "cerebras-inference-compiler")
ALONE = ("cerebras_appliance", "cerebras_inference_workload")
OF_ONE_BUILD = (CLIENT, *WITH_DEPENDENCIES, *ALONE)


class RequirementError(ValueError):
    """A custom requirement that is not taken; the text names it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One run of pip: `requirements` as given on the index, `wheels` as local files."""

    name: str
    requirements: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    dependencies: bool = True


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """An environment, fully named.

    `version` is the build's; `client_wheel` and `appliance_wheel` are local files (None: from the index);
    `client` tells whether the build has a client package at all, `client_matches` whether `client_wheel` is of the build.
    """

    version: str | None
    client: bool = True
    client_wheel: str | None = None
    client_matches: bool = True
    appliance_wheel: str | None = None
    custom: tuple[str, ...] = ()

    def steps(self) -> list[Step]:
        """The runs of pip, in the contract's order."""
        steps = []
        if self.client_wheel is not None:
            steps.append(Step("client", wheels=(self.client_wheel,)))
        elif self.client and self.version is not None:
            steps.append(Step("client", (pin(CLIENT, self.version),)))
        if self.appliance_wheel is not None:
            steps.append(Step("appliance wheel", wheels=(self.appliance_wheel,), dependencies=False))
        elif self.version is not None:
            steps.append(Step("server", tuple(pin(name, self.version) for name in WITH_DEPENDENCIES)))
            steps.append(Step("appliance", tuple(pin(name, self.version) for name in ALONE), dependencies=False))
        if self.client_wheel is not None and not self.client_matches:
            # Where the build's packages and the wheel disagree, pip has put the build's own client in its place.
            steps.append(Step("client again", wheels=(self.client_wheel,), dependencies=False))
        if self.custom:
            steps.append(Step("custom", self.custom))
        return steps

    def constraints(self, step: Step | None = None) -> list[str]:
        """Every package of the suite in this very build, also when it comes as a dependency.

        Those that `step` names itself are left out: pip would call a missing one a conflict with its constraint. A given
        client wheel stands for its package, whatever its version; one of another build brings what it needs itself, and
        the later steps put the build's own in its place.
        """
        if step is not None and step.wheels and step.wheels[0] == self.client_wheel and not self.client_matches:
            return []
        names = OF_ONE_BUILD if self.client_wheel is None else OF_ONE_BUILD[1:]
        pins = [] if self.version is None else [pin(name, self.version) for name in names]
        return [line for line in pins if step is None or line not in step.requirements]


def pin(package: str, version: str) -> str:
    """Exactly this version: `==2.3.0` would also take `2.3.0+local`, `===` compares the whole text."""
    return f"{package}==={canonical(version)}"


def check_custom(requirement: str) -> str:
    """A requirement that names a package on the index and nothing else (E5).

    Raises:
        RequirementError: It is an option, a file, a URL, or no requirement.
    """
    text = requirement.strip()
    if not text or text.startswith("-") or "\n" in text or "\r" in text:
        raise RequirementError(f"custom requirement {requirement!r}: must name a package")
    try:
        parsed = Requirement(text)
    except InvalidRequirement as error:
        raise RequirementError(f"custom requirement {requirement!r}: {str(error).splitlines()[0]}") from error
    if parsed.url is not None:
        raise RequirementError(f"custom requirement {requirement!r}: must come from the index, not from a URL")
    return str(parsed)


def key(spec: EnvironmentSpec, *, python: str, index: str, hashes: Sequence[str]) -> str:
    """What two identical environments have in common: packages, interpreter, index, content of local wheels."""
    steps = [[step.name, step.requirements, len(step.wheels), step.dependencies] for step in spec.steps()]
    text = json.dumps([python, index, list(hashes), steps, spec.constraints()])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Index:
    """A package index: `url` without credentials, `login` as (host, user, password) or None."""

    url: str
    login: tuple[str, str, str] | None


def split_index(url: str) -> Index:
    """Take the credentials out of an index URL: they go into a netrc file, never into argv or a log."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    place = f"[{host}]" if ":" in host else host
    bare = urlunsplit((parts.scheme, f"{place}:{parts.port}" if parts.port else place, parts.path, parts.query, ""))
    login = (host, parts.username or "", parts.password or "") if parts.username or parts.password else None
    return Index(bare, login)


@dataclass(frozen=True, slots=True)
class PipFault:
    """Why pip failed, in a word, and whether trying again can help; `text` says it better than pip's last line."""

    word: str
    retry: bool
    text: str | None = None


_FAULTS = (
    (re.compile(r"No space left on device|Disk quota exceeded|Errno 28"), PipFault("no_space", retry=False)),
    (re.compile(r"is not a trusted or secure host"), PipFault(
        "index_untrusted", retry=False,
        text="the index is asked without TLS and is not on this machine: use https, or name its host in cbclient.trusted_hosts",
    )),
    (re.compile(r"DO NOT MATCH THE HASHES"), PipFault("hash_mismatch", retry=True)),
    (
        re.compile(r"ConnectionError|NewConnectionError|ReadTimeout|Connection refused|Connection broken|"
                   r"5\d\d Server Error|HTTP error 5|timed out|Temporary failure in name resolution|IncompleteRead"),
        PipFault("index_unreachable", retry=True),
    ),
    (re.compile(r"ResolutionImpossible|conflicting dependencies"), PipFault("conflict", retry=False)),
    (re.compile(r"No matching distribution found|Could not find a version"), PipFault("not_found", retry=False)),
    (re.compile(r"401 |403 "), PipFault("index_refused", retry=False)),
    (re.compile(r"^took longer than", re.MULTILINE), PipFault("too_slow", retry=True)),
)  # fmt: skip


def fault_of(output: str) -> PipFault:
    """What pip's output says about its failure; an unreachable index counts before the packages it did not show."""
    return next((fault for pattern, fault in _FAULTS if pattern.search(output)), PipFault("failed", retry=True))
