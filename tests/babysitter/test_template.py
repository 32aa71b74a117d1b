"""Words stay words."""

import pytest

from babysitter.template import fill


@pytest.mark.parametrize(
    ("template", "argv"),
    [
        (["csctl", "cancel", "job", "{wsjob_id}"], ["csctl", "cancel", "job", "w 1;x"]),
        (["x", "--job={wsjob_id}", "{other}"], ["x", "--job=w 1;x", "{other}"]),
    ],
)
def test_fill_keeps_words_whole(template: list[str], argv: list[str]) -> None:
    assert fill(template, {"wsjob_id": "w 1;x"}) == argv


def test_fill_puts_all_flags_where_they_belong() -> None:
    assert fill(["a", "{flags}", "b"], {}, ["-x", "y z"]) == ["a", "-x", "y z", "b"]
