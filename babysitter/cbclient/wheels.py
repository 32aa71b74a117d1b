"""Local wheels: where they are looked for, and what a wheel file says of itself."""

import email.parser
import hashlib
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HASH_CHUNK_BYTES = 1 << 20
METADATA_LIMIT_BYTES = 1 << 20


class WheelError(ValueError):
    """A file that is no usable wheel, or lies where none may lie; the text names it."""


@dataclass(frozen=True, slots=True)
class Roots:
    """Where wheels of builds lie; any of them may be absent."""

    workspace: Path | None = None
    artifact_cache: Path | None = None
    release_stage: Path | None = None

    def patterns(self) -> list[tuple[Path, str]]:
        """Directory and glob of each place, in the order in which they are searched."""
        places: list[tuple[Path, str]] = []
        if self.workspace is not None:
            places.append((self.workspace, "build/appliance/"))
        if self.artifact_cache is not None:
            places.append((self.artifact_cache, "2*/"))
        if self.release_stage is not None:
            places.append((self.release_stage, "*/*/*/components/cbcore/"))
            places.append((self.release_stage, "*/*/*/components/"))
        if self.artifact_cache is not None:
            places.append((self.artifact_cache, ""))
        return places


def find(roots: Roots, names: Sequence[str]) -> Path | None:
    """The first wheel of one of `names`, place by place; within a place the newest."""
    for directory, pattern in roots.patterns():
        paths = [path for name in names for path in directory.glob(f"{pattern}{name}") if path.is_file()]
        if paths:
            return max(paths, key=lambda path: (path.stat().st_mtime, path.name))
    return None


def check_allowed(path: Path, allowed: Sequence[Path]) -> Path:
    """The wheel's real path, which must lie under one of `allowed` (docs/faults.md G18).

    Raises:
        WheelError: It lies elsewhere or does not exist.
    """
    real = path.resolve()
    if not any(real.is_relative_to(root.resolve()) for root in allowed):
        raise WheelError(f"cbclient_whl {path}: not under an allowed directory (setting cbclient.wheel_dirs)")
    if not real.is_file():
        raise WheelError(f"cbclient_whl {path}: does not exist")
    return real


def sha256(path: Path) -> str:
    """Hash of the file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def version_in(path: Path) -> str:
    """The version that the wheel's own metadata tells.

    Raises:
        WheelError: It is no wheel.
    """
    return _metadata(path)[1]


def stage(path: Path, directory: Path) -> Path:
    """A copy of the wheel under the file name that its metadata gives, which is the one that pip takes.

    Builds are published as `name-260215.inference.…-cp311….whl`, whose middle part is no version.

    Raises:
        WheelError: It is no wheel.
    """
    name, version, tags = _metadata(path)
    spelled = name.replace("-", "_")
    target = directory / f"{spelled}-{version}-{tags}.whl"
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return target


def _metadata(path: Path) -> tuple[str, str, str]:
    """Name, version and the first tag."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.rpartition("/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
            metadata = email.parser.Parser().parsestr(_text(archive, members["METADATA"]))
            wheel = email.parser.Parser().parsestr(_text(archive, members["WHEEL"]))
            name, version, tags = metadata["Name"], metadata["Version"], wheel["Tag"]
    except (OSError, zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise WheelError(f"{path}: not a wheel ({error})") from error
    if not name or not version or not tags or "/" in f"{name}{version}{tags}":
        raise WheelError(f"{path}: its metadata lacks Name, Version or Tag")
    return name, version, tags


def _text(archive: zipfile.ZipFile, member: str) -> str:
    with archive.open(member) as file:
        return file.read(METADATA_LIMIT_BYTES).decode()
