from typing import Any

import pytest
from pydantic import BaseModel

from common.nulls import without_nulls


class Inner(BaseModel):
    labels: tuple[str, ...] = ()
    table: dict[str, Any] = {}


class Outer(BaseModel):
    name: str
    inner: Inner | None = None
    plain: Inner = Inner()


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"name": "a", "inner": None}, {"name": "a"}),
        ({"name": None}, {}),
        ({"name": "a", "inner": {"labels": None}}, {"name": "a", "inner": {}}),
        ({"name": "a", "plain": {"labels": None}}, {"name": "a", "plain": {}}),
        ({"inner": {"table": {"free": None}}}, {"inner": {"table": {"free": None}}}),
        ({"unknown": None}, {"unknown": None}),
        ({"inner": "no model"}, {"inner": "no model"}),
    ],
)
def test_null_for_a_member_of_the_model_counts_as_absent_W21(body: dict[str, Any], kept: dict[str, Any]) -> None:
    assert without_nulls(Outer, body) == kept
