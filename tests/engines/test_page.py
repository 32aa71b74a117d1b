"""docs/engines.md says what the catalogue says."""

from tests.engines.page import PAGE, page


def test_page_of_engines_has_the_table_of_the_catalogue() -> None:
    assert page() == PAGE.read_text(), "python -m tests.engines.page"
