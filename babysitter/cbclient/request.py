"""The create request as it stands in request.json (docs/contract.md 5), with what only a node can judge."""

import json
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator

from babysitter.cbclient.packages import RequirementError, check_custom
from babysitter.cbclient.versions import TagError, version_of
from common.atomic_file import read_bounded
from common.exits import ConfigurationError
from common.nulls import without_nulls
from common.wire import create
from common.wire.base import JsonObject

LIMIT_BYTES = 1 << 20


class CheckedPlacement(create.Placement):
    """With a tag that names a version."""

    @field_validator("app_tag")
    @classmethod
    def _tag_is_a_version(cls, value: str | None) -> str | None:
        return _check_tag(value)


class CheckedClientConfig(create.ClientConfig):
    """With tags that name a version, and requirements that name packages."""

    @field_validator("app_tag", "client_version")
    @classmethod
    def _tag_is_a_version(cls, value: str | None) -> str | None:
        return _check_tag(value)

    @field_validator("custom_requirements")
    @classmethod
    def _requirements_name_packages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(check_custom(text) for text in value)
        except RequirementError as error:
            raise ValueError(str(error)) from error


class CheckedRequest(create.CreateRequest):
    """A request that this node can carry out."""

    placement: CheckedPlacement = Field(default_factory=CheckedPlacement)
    cbclient_config: CheckedClientConfig | None = None


def unknown(body: JsonObject, model: type[BaseModel] = CheckedRequest, path: str = "") -> list[str]:
    """Dotted names of the members of `body` that nothing here reads."""
    if model.model_config.get("extra") == "allow":
        return []
    names = []
    for name, value in body.items():
        field = model.model_fields.get(name)
        if field is None:
            names.append(f"{path}{name}")
            continue
        part = next((it for it in (field.annotation, *get_args(field.annotation)) if _is_model(it)), None)
        if part is not None and isinstance(value, dict):
            names += unknown(value, part, f"{path}{name}.")
    return names


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def load(path: Path) -> CheckedRequest:
    """The request in a file.

    Raises:
        ConfigurationError: The file is missing or its content no request; names file and field.
    """
    try:
        body = json.loads(read_bounded(path, limit_bytes=LIMIT_BYTES))
        return CheckedRequest.model_validate(without_nulls(CheckedRequest, body) if isinstance(body, dict) else body)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        faults = [f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ConfigurationError("\n".join(faults)) from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _check_tag(value: str | None) -> str | None:
    if value is not None:
        try:
            version_of(value)
        except TagError as error:
            raise ValueError(str(error)) from error
    return value
