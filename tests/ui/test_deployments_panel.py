"""The page's Deployments panel in a real browser; the registry's answers about deployments are made up here."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.ports import free_port
from tests.ui.browser import CHROMIUM
from tests.ui.test_page import NASTY, WAIT_MS, page_of, registry_at

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing (Debian: apt install chromium)"),
]
expect.set_options(timeout=WAIT_MS)


def one(name: str, **members: Any) -> dict[str, Any]:
    times = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
    base = {"name": name, "model": f"{name}-model", "version": 1, "revision": 4, "phase": "ready", "spec": {}, **times}
    return {**base, "wanted": 1, "ready": 1, "asleep": 0, **members}


def answers(page: Page, listed: list[dict[str, Any]], *, level: str = "admin") -> list[tuple[str, str, Any]]:
    """Answer the page's calls about deployments; what else it asks of them is in the list that is returned."""
    asked: list[tuple[str, str, Any]] = []

    def handle(route: Route) -> None:
        method, path = route.request.method, route.request.url.partition("/api/v1/deployments")[2]
        if method == "GET":
            route.fulfill(json={"total": len(listed), "deployments": listed})
            return
        asked.append((method, path, json.loads(route.request.post_data or "null")))
        route.fulfill(json={})

    page.route("**/api/v1/deployments**", handle)
    session = {"level": level, "prefix": "", "guarded": True, "version": "1"}
    page.route("**/ui/session", lambda route: route.fulfill(json=session))
    return asked


def row(page: Page, name: str) -> Any:
    return page.locator("#dep-rows tr", has=page.get_by_text(name, exact=True))


def test_deployments_are_seen_and_steered(browser: Browser, tmp_path: Path) -> None:
    listed = [
        one("warm", scaled=2, wanted=2, ready=2),
        one("cold", phase="cold", wanted=0, ready=0),
        one("slow", phase="starting", ready=0, stage="loading", percent=41, eta_s=12.0),
        one("large", phase="unschedulable", ready=0, reason="needs 4 cuda, the largest free node has 2"),
    ]
    with registry_at(tmp_path, free_port()) as url, page_of(browser, None) as page:
        asked = answers(page, listed)
        page.goto(f"{url}/ui")
        expect(page.locator("#dep-count")).to_have_text("1 of 4 ready, 1 cold")
        expect(row(page, "slow")).to_contain_text("loading · 41 % · 12 s left")
        expect(row(page, "large")).to_contain_text("needs 4 cuda, the largest free node has 2")
        expect(row(page, "warm")).to_contain_text("2 (set)")
        row(page, "cold").get_by_text("Wake").click()
        expect(page.locator("#dep-said")).to_have_text("cold: wakes.")
        row(page, "warm").get_by_text("+").click()
        expect(page.locator("#dep-said")).to_have_text("warm: scaled to 3.")
        row(page, "warm").get_by_text("Auto").click()
        row(page, "warm").get_by_text("Sleep").click()
        row(page, "large").get_by_text("Delete").click()
        expect(row(page, "large").get_by_text("Delete it?")).to_be_visible()
        assert not [call for call in asked if call[0] == "DELETE"]
        row(page, "large").get_by_text("Delete it?").click()
        expect(page.locator("#dep-said")).to_have_text("large: deleted.")
        assert asked == [
            ("POST", "/cold/wake", None),
            ("POST", "/warm/scale", {"replicas": 3}),
            ("POST", "/warm/scale", {"replicas": None}),
            ("POST", "/warm/sleep", None),
            ("DELETE", "/large", None),
        ]


def test_who_may_only_read_changes_nothing(browser: Browser, tmp_path: Path) -> None:
    with registry_at(tmp_path, free_port()) as url, page_of(browser, None) as page:
        answers(page, [one("cold", phase="cold")], level="read")
        page.goto(f"{url}/ui")
        expect(row(page, "cold").get_by_text("Wake")).to_be_disabled()
        expect(row(page, "cold").get_by_text("Delete")).to_be_disabled()


def test_what_a_deployment_says_is_text(browser: Browser, tmp_path: Path) -> None:
    with registry_at(tmp_path, free_port()) as url, page_of(browser, None) as page:
        answers(
            page, [one(NASTY, model=NASTY, reason=NASTY, stage=NASTY), one("odd", phase=NASTY, percent="x", wanted={})]
        )
        page.goto(f"{url}/ui")
        expect(row(page, NASTY).first.locator(".k-model")).to_have_text(NASTY)
        expect(page.locator("#dep-rows img, #dep-rows script")).to_have_count(0)
        assert page.evaluate("window.hit") is None


def test_without_deployments_there_is_no_panel(browser: Browser, tmp_path: Path) -> None:
    with registry_at(tmp_path, free_port()) as url, page_of(browser, None) as page:
        answers(page, [])
        page.goto(f"{url}/ui")
        expect(page.locator("#empty")).to_be_visible()
        expect(page.locator("#deployments")).to_be_hidden()
