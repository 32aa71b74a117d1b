"""PURE. What an answer that is no success means to the operator, and what the service said of it."""

from http import HTTPStatus
from typing import Any

from ctl.codes import Code
from ctl.problem import Problem

PHRASES = {status.value: status.phrase for status in HTTPStatus}
SAID_LIMIT = 600
"""Characters of a service's own words that are shown."""


def refusal(name: str, secret: str, status: int, content: Any) -> Problem:
    """The problem. `name` is the service's, `secret` the flag of its token."""
    reason = reason_in(content) or PHRASES.get(status, "no reason given")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return Problem(f"{name} refused: {reason}", hint=f"give it with {secret}", code=Code.REFUSED)
    if status == HTTPStatus.NOT_FOUND:
        return Problem(f"{name}: {reason}", code=Code.NOT_FOUND)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Problem(f"{name} refused ({status}): {reason}", code=Code.REFUSED)
    if code_in(content) == "model_not_found":
        hint = "'svcctl models' lists those that can be asked"
        return Problem(f"{name} failed ({status}): {reason}", hint=hint, code=Code.NOT_FOUND)
    return Problem(f"{name} failed ({status}): {reason}", hint="'svcctl doctor' looks for the cause")


def reason_in(content: Any) -> str:
    """The error text of an answer: ours, OpenAI's, or a list of fields that are wrong."""
    if isinstance(content, str):
        return content[:SAID_LIMIT]
    if not isinstance(content, dict):
        return ""
    error = content.get("error", content.get("detail", content.get("message", "")))
    if isinstance(error, dict):
        error = error.get("message", "")
    if isinstance(error, list):
        error = "; ".join(_field_fault(item) for item in error)
    return str(error)[:SAID_LIMIT]


def code_in(content: Any) -> str | None:
    """The `code` of an answer in OpenAI's form."""
    error = content.get("error") if isinstance(content, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def _field_fault(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    place = ".".join(str(part) for part in item.get("loc", ()) if part != "body")
    fault = str(item.get("msg", item))
    return f"{place}: {fault}" if place else fault
