"""Make the pictures of docs/images again: `python -m tests.ui.screenshots`. Takes three minutes; nothing is tested here."""

import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.ports import free_port
from tests.ui.browser import chromium
from tests.ui.fleet import ROOT, Fleet, fleet, get, post, process, until
from tests.ui.many import name_of, paper_fleet

IMAGES = ROOT / "docs" / "images"
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
TRAFFIC_S = 120.0
USAGE = {"include_usage": True}


def shoot(page: Page, name: str) -> None:
    """Save what the page shows."""
    page.wait_for_timeout(1500)
    page.screenshot(path=str(IMAGES / f"{name}.png"))


def opened(browser: Browser, registry: str, theme: str, *, phone: bool = False) -> Page:
    """The page with its rows and charts there."""
    size = {"viewport": PHONE, "is_mobile": True, "has_touch": True} if phone else {"viewport": DESK}
    page = browser.new_context(**size, color_scheme=theme, device_scale_factor=2 if phone else 1).new_page()  # type: ignore[arg-type]
    page.goto(f"{registry}/ui")
    page.locator("#rows tr").first.wait_for()
    page.locator(".chart path").first.wait_for(state="attached")
    return page


def ask_around(made: Fleet, seconds: float) -> None:
    """Clients that come and go."""
    for url in made.babysitters.values():
        server = f"http://127.0.0.1:{int(url.rpartition(':')[2]) - 1}"
        post(f"{server}/mock/knobs", {"ttft_s": 0.09, "token_delay_s": 0.018, "tokens": 40})
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            body = {"model": rng.choice(("small", "small", "large")), "messages": [{"role": "user", "content": "hi"}]}
            post(
                f"{made.router}/v1/chat/completions",
                {**body, "stream": True, "stream_options": USAGE, "max_tokens": rng.randint(8, 60)},
            )
            time.sleep(rng.uniform(0, 1.5))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def two(browser: Browser, folder: Path) -> None:
    """A fleet of two, as launch_all.sh starts it."""
    with fleet(folder, {"babysitter-1": "small", "babysitter-2": "large"}) as made:
        clients = threading.Thread(target=ask_around, args=(made, TRAFFIC_S + 25))
        clients.start()
        time.sleep(TRAFFIC_S)
        for theme in ("light", "dark"):
            page = opened(browser, made.registry, theme)
            shoot(page, f"ui-2-{theme}")
        page.keyboard.press("c")
        page.keyboard.type("Say hello to the person on call.")
        page.keyboard.press("Enter")
        page.locator(".said-by.assistant small", has_text="first token").wait_for()
        shoot(page, "ui-chat-dark")
        clients.join()


def many(browser: Browser, folder: Path) -> None:
    """Five hundred, on paper."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-m", "registry", "--port", str(port), "--store", "memory://", "--health-interval", "2")
    with process(folder, *command, log="registry"):
        until("the registry listens", lambda: get(f"{url}/health"))
        with paper_fleet(url, 500):
            page = opened(browser, url, "light")
            page.get_by_text("492", exact=True).first.wait_for()
            shoot(page, "ui-500-light")
            page = opened(browser, url, "dark")
            shoot(page, "ui-500-dark")
            page.locator("#rows").get_by_role("button", name=name_of(7), exact=True).click()
            shoot(page, "ui-detail-dark")
            shoot(opened(browser, url, "light", phone=True), "ui-500-phone")


def main() -> None:
    """All of them."""
    IMAGES.mkdir(exist_ok=True)
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        many(browser, Path(folder))
        two(browser, Path(folder))


if __name__ == "__main__":
    main()
