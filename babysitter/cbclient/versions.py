"""PURE: from an app tag to a package version, a wheel's file name and an image tag (docs/contract.md 5)."""

import re

from packaging.version import InvalidVersion, Version

NO_VERSION = "0.0.0"
WHEEL_TAGS = ("cp311-cp311-linux_x86_64", "cp311-none-any", "py3-none-any", "none-any")
_V_BEFORE_DIGIT = re.compile(r"^v(?=\d)")
_PLAIN = re.compile(r"[A-Za-z0-9._+-]+")
_DOTTED = re.compile(r"^\d+\.\d")


class TagError(ValueError):
    """An app tag that names no version; the text names the tag."""


def version_of(app_tag: str) -> str:
    """The version that `app_tag` means: as it is, or its first part with the others as local version.

    Raises:
        TagError: It is no version and has no parts, or its parts make no version.
    """
    tag = _V_BEFORE_DIGIT.sub("", app_tag.strip())
    if not _PLAIN.fullmatch(tag):
        raise TagError(f"app_tag {app_tag!r} has other characters than A-Z a-z 0-9 . _ + -")
    if "+" in tag or ("-" not in tag and _is_version(tag)):
        version = tag
    else:
        first, *others = tag.split("-")
        if not others:
            raise TagError(f"app_tag {app_tag!r} is neither a version nor made of parts joined by '-'")
        base = first if first[:1].isdigit() else NO_VERSION
        version = f"{base}+{'.'.join(others)}"
    if not _is_version(version):
        raise TagError(f"app_tag {app_tag!r} gives {version!r}, which is no version")
    return version


def canonical(version: str) -> str:
    """The spelling that an index and pip use for `version`."""
    return str(Version(version))


def has_client_package(app_tag: str) -> bool:
    """True when a client package of this build exists: only tags that begin with a dotted version have one."""
    return _DOTTED.match(_V_BEFORE_DIGIT.sub("", app_tag.strip())) is not None


def wheel_names(version: str, package: str = "cerebras_appliance") -> list[str]:
    """File names under which a local wheel of `version` may lie, the likeliest first."""
    spelled = dict.fromkeys((version.replace("+", "."), version))
    return [f"{package}-{name}-{tag}.whl" for name in spelled for tag in WHEEL_TAGS]


def image_tag(app_tag: str) -> str:
    """The container image's tag: no `+`, and without a leading dotted version when more follows."""
    tag = app_tag.strip()
    first, plus, local = tag.partition("+")
    if plus:
        rest = local.replace(".", "-").replace("+", "-")
        return rest if "." in first and rest else f"{first}-{rest}".rstrip("-")
    first, dash, rest = tag.partition("-")
    return rest if dash and rest and "." in first and first[:1].isdigit() else tag


def image(registry: str, app_tag: str) -> str:
    """The whole image name, `REGISTRY/cbcore:TAG`."""
    return f"{registry.rstrip('/')}/cbcore:{image_tag(app_tag)}"


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True
