"""Compact JSON, which scripts of the ancestors look for by `grep '"id":"…"'`."""

import ast
from pathlib import Path

import pytest

from common.http.answers import json_answer
from common.http.errors import ApiError

PROJECT = Path(__file__).resolve().parents[2]
SERVICES = ("registry", "router", "babysitter", "common")


def test_answer_has_no_blanks_between_its_words_W35() -> None:
    answer = json_answer({"data": [{"id": "a, b: c", "n": 1}, None]}, status=201, headers={"X-Y": "z"})
    assert answer.text == '{"data":[{"id":"a, b: c","n":1},null]}'
    assert (answer.status, answer.content_type, answer.headers["X-Y"]) == (201, "application/json", "z")


def test_error_has_no_blanks_between_its_words_W35() -> None:
    assert ApiError(400, "no", field="x").response().text == '{"error":"no","field":"x"}'


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_answers_by_a_function_that_puts_blanks_W35(service: str) -> None:
    users = [
        f"{path}:{node.lineno}"
        for path in sorted((PROJECT / service).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute) and node.attr == "json_response"
    ]
    assert users == []
