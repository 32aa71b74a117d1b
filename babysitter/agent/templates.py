"""The templates of this node: TOML files of one folder, read again when they change. A broken one costs no other."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
import tomli
from msgspec.structs import replace

from babysitter.agent import template_file, template_shown
from babysitter.agent.slurm.job import checked
from babysitter.agent.template_file import TemplateError, TemplateFile
from babysitter.settings import BabysitterSettings
from common import own_python
from common.atomic_file import read_bounded
from common.names import is_service_name
from common.settings import Layer, SettingsError, build
from common.wire.deployment import RELEASE_SERVER, TemplateGlance

log = structlog.get_logger(__name__)
SHIPPED = own_python.ROOT / "config" / "templates"
"""Beside the packages, in a checkout and as installed."""
FILE_LIMIT_BYTES = 64 << 10
MOST = 64
SCHEMA_LIMIT_BYTES, SCHEMAS_LIMIT_BYTES = 8 << 10, 96 << 10
"""Of one schema in a heartbeat, and of all of them: a registry takes 512 KiB, half of which are replicas'."""
ERROR_LIMIT = 300
Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Template:
    """One file of the folder: `file` is None where it is of no use, and then `error` says why."""

    name: str
    file: TemplateFile | None
    digest: str = ""
    error: str = ""

    @property
    def glance(self) -> TemplateGlance:
        """What is told of it."""
        if self.file is None:
            return TemplateGlance(name=self.name, digest=self.digest, error=self.error[:ERROR_LIMIT])
        return template_shown.glance(self.name, self.file, self.digest)


class TemplateFolder:
    """The templates in `path`; `assigning` is the variable that says which accelerators are a replica's."""

    def __init__(self, path: Path, assigning: str = "") -> None:
        self.path = path
        self._assigning = assigning
        self._seen: dict[str, tuple[Signature | None, Template]] = {}
        self._complaint = ""

    def read(self) -> Mapping[str, Template]:
        """Every template as its file is now, by name. Quick: only what has changed is read."""
        found: dict[str, tuple[Signature | None, Template]] = {}
        try:
            for path in sorted(self.path.glob("*.toml"), key=lambda path: path.stem):
                if len(found) == MOST:
                    self._complain(f"more than {MOST} templates: those after {path.stem!r} are not read")
                    break
                signature = _signature(path)
                seen = self._seen.get(path.stem)
                if seen is None or seen[0] != signature:
                    seen = (signature, read(path, self._assigning))
                    if seen[1].file is None:
                        log.error("template.broken", template=path.stem, reason=seen[1].error)
                found[path.stem] = seen
        except OSError as error:
            self._complain(f"cannot be read: {error.strerror}")
        self._seen = found
        return {name: template for name, (_, template) in found.items()}

    def glances(self) -> list[TemplateGlance]:
        """What a heartbeat carries: large schemas are left out, and so is what is more than it may have."""
        glances, budget = [], SCHEMAS_LIMIT_BYTES
        for template in self.read().values():
            glance = template.glance
            size = len(msgspec.json.encode(glance.parameters))
            if size > min(budget, SCHEMA_LIMIT_BYTES):
                glance = replace(glance, parameters={})
            else:
                budget -= size
            glances.append(glance)
        return glances

    def all(self) -> Iterator[TemplateGlance]:
        """Every template in full, and the release server's modes as one more."""
        yield from (template.glance for template in self.read().values())
        yield RELEASE_SERVER

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            self._complaint = reason
            log.error("template.folder", folder=str(self.path), reason=reason)


def _signature(path: Path) -> Signature | None:
    """Differs whenever the file was changed; None where there is none, as at the end of a link to nowhere."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def read(path: Path, assigning: str = "") -> Template:
    """The template in a file, whatever is in it."""
    name, digest = path.stem, ""
    try:
        raw = read_bounded(path.resolve(), limit_bytes=FILE_LIMIT_BYTES)
        digest = hashlib.sha256(raw).hexdigest()[:16]
        if not is_service_name(name) or name == RELEASE_SERVER.name:
            raise TemplateError(f"{name!r} may not be a template's name")
        file = template_file.parse(tomli.loads(raw.decode("utf-8-sig")), assigning)
        for values in template_shown.samples(file):
            for rank in (0, 1):
                judge(template_file.render(file.of_rank(rank), values))
            checked(template_file.render_job(file, values))
    except OSError as error:
        return Template(name, None, error=f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, too large, or no template
        return Template(name, None, digest, " ".join(str(error).split()))
    return Template(name, file, digest)


def judge(rendered: Mapping[str, object]) -> None:
    """Whether a babysitter would take what a template makes.

    Raises:
        TemplateError: It would not.
    """
    own = {"name": "x", "port": 1024}
    try:
        settings = build(BabysitterSettings, [Layer("template", {**rendered, **own}, {})])
    except SettingsError as error:
        raise TemplateError(str(error).replace("template: ", "")) from error
    if settings.backend.type == "cbclient":
        raise TemplateError("backend.type: a release server's replica has no template")
