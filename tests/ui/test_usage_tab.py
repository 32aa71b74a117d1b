"""The page's Usage tab in a real browser, over what a real registry was told; and over hostile answers."""

import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from common.tokens import FIELDS
from tests.ports import free_port
from tests.ui.browser import CHROMIUM
from tests.ui.fleet import post
from tests.ui.test_page import NASTY, WAIT_MS, page_of, registry_at

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing (Debian: apt install chromium)"),
]
expect.set_options(timeout=WAIT_MS)


def tell(registry: str, hours_ago: int, *rows: tuple[str, str, int, int]) -> None:
    """As a router does: key, model, prompt and completion tokens of one request each."""
    hour = int(time.time() // 3600) - hours_ago
    told = [[key, model, "r1", [1, prompt, prompt // 2, written, 0, 0]] for key, model, prompt, written in rows]
    body = {"writer": "0123456789abcdef", "sequence": 1, "hour": hour, "rows": told}
    post(f"{registry}/v1/routers/router-1/usage", body)


def cells(page: Page) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator("#u-rows tr").all()]


def test_who_used_what_is_seen_over_time(browser: Browser, tmp_path: Path) -> None:
    with registry_at(tmp_path, free_port()) as url, page_of(browser, url) as page:
        expect(page.locator("#usage")).to_be_hidden()
        page.get_by_role("tab", name="Usage").click()
        expect(page.locator("#u-said")).to_have_text("Nothing was used in this time.")
        expect(page.locator("#rows")).to_be_hidden()
        tell(url, 0, ("team-a", "m", 1000, 20), ("team-b", "n", 30, 4), ("", "m", 5, 1))
        tell(url, 3, ("team-a", "n", 500, 10))
        tell(url, 24 * 5, ("team-b", "m", 7, 7))
        page.reload()  # the address says which view it was
        expect(page.locator("#u-rows tr")).to_have_count(3)
        assert cells(page)[0] == ["team-a", "2", "1,500", "750", "30", "0", "0"]
        assert [row[0] for row in cells(page)] == ["team-a", "team-b", "anonymous"]
        expect(page.locator("#u-total")).to_contain_text("1.5K")
        expect(page.locator("#u-plot rect")).to_have_count(5)
        expect(page.locator("#u-plot")).to_contain_text("team-a: 1,020")
        page.locator("#u-days").select_option("1")
        expect(page.locator("#u-plot rect")).to_have_count(4)
        page.locator("#u-days").select_option("30")
        page.locator("#u-by").select_option("key,model")
        expect(page.locator("#u-rows tr")).to_have_count(5)
        assert cells(page)[0][0] == "team-a · m"
        page.locator("#u-what").select_option("requests")
        expect(page.locator("#u-ends")).to_contain_text("requests per day")
        page.keyboard.press("Escape")
        page.locator("#u-what").blur()
        page.keyboard.press("u")
        expect(page.locator("#usage")).to_be_hidden()
        expect(page.get_by_role("tab", name="Fleet")).to_have_attribute("aria-selected", "true")


def test_what_the_ledger_says_is_text(browser: Browser, tmp_path: Path) -> None:
    now = time.strftime("%Y-%m-%dT%H:00:00Z", time.gmtime())
    rows: list[Any] = [
        {"at": now, "key": NASTY, **dict.fromkeys(FIELDS, 3)},
        {"at": NASTY, "key": "odd", "requests": "many", "prompt_tokens": {}, "completion_tokens": -5},
        "no row",
        None,
    ]
    with registry_at(tmp_path, free_port()) as url, page_of(browser, None) as page:
        page.route("**/api/v1/usage**", lambda route: route.fulfill(json={"since": now, "until": NASTY, "rows": rows}))
        page.goto(f"{url}/ui#usage")
        expect(page.locator("#u-rows")).to_contain_text(NASTY)
        expect(page.locator("#usage img, #usage script")).to_have_count(0)
        assert page.evaluate("window.hit") is None


def test_a_registry_that_does_not_tell_is_said(browser: Browser, tmp_path: Path) -> None:
    with registry_at(tmp_path, free_port()) as url, page_of(browser, None, faults_allowed=True) as page:
        refusal = {"error": "the store is not available"}
        page.route("**/api/v1/usage**", lambda route: route.fulfill(status=503, json=refusal))
        page.goto(f"{url}/ui#usage")
        expect(page.locator("#u-said")).to_have_text("Not heard: the store is not available")
