"""PURE. The text of a settings file: TOML, YAML or JSON."""

import json
from typing import Any

import tomli

YAML = (".json", ".yaml", ".yml")
"""Names of files end so that are JSON or YAML."""


def parse(text: str, suffix: str) -> Any:
    """What it says. `suffix` is that of the file's name; under any but these four it may be TOML or YAML.

    Raises:
        ValueError: It is no valid syntax.
    """
    if suffix in YAML:
        return _json_or_yaml(text)
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError:
        if suffix == ".toml":
            raise
        try:
            other = _json_or_yaml(text)
        except ValueError:
            other = None
        if not isinstance(other, dict | list):
            raise  # TOML with a mistake in it is text to YAML
        return other


def _json_or_yaml(text: str) -> Any:
    """JSON first: some of it, such as an indent of tabs, is no YAML.

    Raises:
        ValueError: It is neither.
    """
    try:
        return json.loads(text)
    except ValueError:
        import yaml  # noqa: PLC0415 - few have such a file, and every process would load it

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
