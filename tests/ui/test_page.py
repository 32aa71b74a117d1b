"""The operator's page in a real browser: over a real fleet, over a hostile one, over a registry that goes and comes."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Error, Page, expect

from tests.ports import free_port
from tests.ui.browser import CHROMIUM
from tests.ui.fleet import Fleet, fleet, get, post, process, until
from tests.ui.many import name_of, paper_fleet, serving_babysitter

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing (Debian: apt install chromium)"),
]
WAIT_MS = 30_000
expect.set_options(timeout=WAIT_MS)
NASTY = "<img src=x onerror=window.hit=1><script>window.hit=1</script>\"'`${1}"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("real"), {"r1": "small", "r2": "large"}) as made:
        yield made


@contextmanager
def page_of(browser: Browser, registry: str | None, *, faults_allowed: bool = False, **context: Any) -> Iterator[Page]:
    """The page, loaded; at its end nothing may have broken: no exception, nothing that its policy forbids."""
    made = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **context})
    page = made.new_page()
    page.set_default_timeout(WAIT_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    try:
        if registry is not None:
            page.goto(f"{registry}/ui")
        yield page
        broken = [fault for fault in faults if "Failed to load resource" not in fault or not faults_allowed]
        assert broken == []
    finally:
        made.close()


@contextmanager
def registry_at(folder: Path, port: int, *flags: str) -> Iterator[str]:
    """A registry process that listens."""
    url = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-m", "registry", "--port", str(port), "--store", "memory://", "--health-interval", "5")
    with process(folder, *command, *flags, log="registry"):
        until("the registry listens", lambda: get(f"{url}/health"))
        yield url


def row(page: Page, name: str) -> Any:
    return page.locator("#rows tr", has=page.get_by_role("button", name=name, exact=True))


def test_the_fleet_is_seen_at_a_glance(browser: Browser, real: Fleet) -> None:
    with page_of(browser, real.registry) as page:
        expect(page.locator("#ready")).to_have_text("2")
        expect(page.locator("#of")).to_have_text("of 2 ready")
        expect(page.locator("#verdict")).to_have_text("Everything is as it should be")
        expect(page.locator("#live")).to_have_text("Live")
        expect(row(page, "r1")).to_contain_text("Ready")
        expect(row(page, "r1")).to_contain_text("small")
        expect(row(page, "r2")).to_contain_text("large")
        expect(page.locator(".tile")).to_have_count(2)
        expect(page.locator("#router-name")).to_contain_text("router-")
        expect(page).to_have_title(re.compile("2/2 ready"))


def test_a_chat_goes_through_the_router_and_shows_in_the_traffic(browser: Browser, real: Fleet) -> None:
    with page_of(browser, real.registry) as page:
        expect(page.locator("#ready")).to_have_text("2")
        expect(page.locator("#router-name")).to_contain_text("router-")
        page.keyboard.press("c")
        expect(page.locator("#c-text")).to_be_focused()
        page.locator("#c-model").select_option("large")
        page.keyboard.type(f"hello {NASTY}")
        page.keyboard.press("Enter")
        expect(page.locator(".said-by.assistant small")).to_contain_text("first token after")
        assert page.locator(".said-by.assistant p").inner_text().strip()
        expect(page.locator(".said-by.user p")).to_contain_text(NASTY)
        page.keyboard.press("Escape")
        expect(page.locator("#chat")).to_be_hidden()
        first_token = page.locator(".chart", has_text="Time to first token").locator(".now")
        expect(first_token).to_contain_text("p95")
        expect(first_token).to_contain_text(re.compile(r"\d"))
        until("it is counted", lambda: b'outcome="ok",replica="r2-server"} 1.0' in get(f"{real.router}/metrics"))


def test_a_replica_tells_its_start_its_log_and_its_restart(browser: Browser, real: Fleet) -> None:
    with page_of(browser, real.registry) as page:
        row(page, "r1").click()
        expect(page.locator("#d-name")).to_have_text("r1")
        expect(page.locator("#d-fall")).to_contain_text("Loading")
        expect(page.locator("#d-fall")).to_contain_text("after")
        expect(page.locator("#d-facts")).to_contain_text("small")
        log = json.loads(get(f"{real.babysitters['r1']}/info"))["replica"]
        psutil.Process(log["replica_pid"]).send_signal(signal.SIGKILL)
        # Nothing is loaded again: the page hears it.
        expect(row(page, "r1").locator(".k-restarts")).to_have_text("1")
        expect(page.locator("#d-state")).to_have_text("Ready")
        expect(page.locator("#d-story")).to_contain_text("Backing off")
        page.locator("#d-err").click()
        expect(page.locator("#d-log")).to_have_attribute("data-empty", re.compile("stderr"))
        assert page.url.endswith("#r=r1")
        page.reload()
        expect(page.locator("#d-name")).to_have_text("r1")


def test_keys_alone_are_enough(browser: Browser, real: Fleet) -> None:
    with page_of(browser, real.registry) as page:
        expect(page.locator("#rows tr")).to_have_count(2)
        page.keyboard.press("/")
        page.keyboard.type("large")
        expect(page.locator("#rows tr")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(page.locator("#rows tr")).to_have_count(2)
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        expect(page.locator("#d-name")).to_have_text("r1")
        page.keyboard.press("j")
        expect(page.locator("#d-name")).to_have_text("r2")
        page.keyboard.press("Escape")
        expect(page.locator("#detail")).to_be_hidden()
        expect(row(page, "r2").get_by_role("button")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#detail")).to_be_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        expect(page.locator("#keys")).to_be_visible()
        page.keyboard.press("Escape")
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.keyboard.press("t")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_drain_and_take_back_then_stop_for_good(browser: Browser, real: Fleet) -> None:
    with page_of(browser, real.registry, faults_allowed=True) as page:  # it may ask for what has just gone
        row(page, "r2").click()
        page.get_by_role("button", name="Drain", exact=True).click()
        expect(page.locator("#d-state")).to_have_text("Draining")
        page.get_by_role("button", name="Take back into service").click()
        expect(page.locator("#d-state")).to_have_text("Ready")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator("#d-state")).to_have_text("Ready")  # asked once more first
        page.get_by_role("button", name="Stop it for good?").click()
        expect(row(page, "r2")).to_have_count(0)
        expect(page.locator("#of")).to_have_text("of 1 ready")


def test_a_replica_that_an_agent_made_is_the_agents_to_tell_of_and_to_stop(browser: Browser, tmp_path: Path) -> None:
    replica, silent = "abcdefghijkl", "mnopqrstuvwx"
    path = f"/api/v1/replicas/{replica}"
    answers: dict[str, Any] = {f"{path}/logs": "from the agent", f"{path}/timeline": {"transitions": [], "stages": []}}
    with registry_at(tmp_path, free_port()) as registry, serving_babysitter(answers) as port:
        here = {"host": "127.0.0.1", "port": port, "hostname": "n1", "url": f"http://127.0.0.1:{port}"}
        life = {"instance_id": "i", "incarnation": 1}
        record = {**here, **life, "status": "running", "ttl_s": 3600}
        for name, kind in (("agent-n1", "node-agent"), (replica, "cbclient")):
            post(f"{registry}/services", {**record, "name": name, "metadata": {"type": kind, "node": "n1"}})
        post(f"{registry}/services/{replica}/heartbeat", {**life, "replica_id": replica, "status": "creating"})
        told = {"replica_id": silent, "status": "failed", "error_message": "no room", "metadata": {"node": "n1"}}
        post(f"{registry}/services/agent-n1/heartbeat", {**life, "node": "n1", "replicas": [told]})
        with page_of(browser, registry, faults_allowed=True) as page:
            expect(page.locator("#rows tr")).to_have_count(2)
            expect(row(page, silent)).to_contain_text("no room")
            row(page, replica).click()
            expect(page.locator("#d-log")).to_have_text("from the agent")
            page.get_by_role("button", name="Stop", exact=True).click()
            page.get_by_role("button", name="Stop it for good?").click()
            expect(page.locator("#d-acts .said")).to_have_text("Stopping.")
            assert answers["posted"] == [f"{path}/stop"]


def test_accelerators_stand_by_their_node_with_who_has_them(browser: Browser, tmp_path: Path) -> None:
    with registry_at(tmp_path, free_port()) as registry:
        life = {"instance_id": "i", "incarnation": 1}
        record = {**life, "host": "127.0.0.1", "port": 18100, "hostname": "h", "status": "running", "ttl_s": 3600}
        place = {"url": "http://127.0.0.1:18100", "metadata": {"type": "node-agent", "node": "gpu-1"}}
        post(f"{registry}/services", {**record, **place, "name": "agent-gpu-1"})
        held = {"index": 0, "kind": NASTY, "memory_mb": 1000, "replicas": [NASTY], "claims": ["/etc/a.toml"]}
        told = {
            **life,
            "node": "gpu-1",
            "accelerators": [held, {"index": 1, "kind": "cuda"}, "odd", None],
            "readings": [{"index": 0, "used_mb": 250, "busy_percent": 40}, None],
        }
        post(f"{registry}/services/agent-gpu-1/heartbeat", told)
        with page_of(browser, registry) as page:
            node = page.locator("#accels .node")
            expect(node).to_have_count(1)
            expect(node.locator("h3")).to_contain_text("gpu-1")
            expect(node.locator("h3")).to_contain_text("free")
            first = node.locator(".accel").first
            expect(first).to_have_attribute("data-held", "true")
            expect(first).to_have_attribute("title", re.compile("250 of 1,000 MiB used · 40 % busy · .*a.toml"))
            expect(node.locator(".accel")).to_have_count(2)
            expect(node.locator(".accel").nth(1)).to_have_attribute("data-held", "false")
            post(
                f"{registry}/services/agent-gpu-1/heartbeat",
                {**told, "accelerators": [{**held, "replicas": [], "claims": []}]},
            )
            expect(node.locator(".accel")).to_have_count(1)
            expect(node.locator("h3")).to_contain_text("1 of 1")
            post(f"{registry}/api/v1/nodes/gpu-1/drain", {})
            expect(node.locator("h3")).to_contain_text("draining")
            assert page.evaluate("window.hit") is None


def test_text_of_the_fleet_is_never_markup(browser: Browser, tmp_path: Path) -> None:
    report = {
        "replica_id": "evil",
        "status": "failed",
        "error_message": NASTY,
        "models": [NASTY],
        "workdir": NASTY,
        "compile_wsjob": [NASTY],
        "wsjob_states": {NASTY: NASTY},
    }
    moves = [{"at": NASTY, "from": NASTY, "to": "starting", "cause": NASTY, "lasted_s": NASTY}]
    stages = [{"name": NASTY, "state": NASTY, "began_at": NASTY, "took_s": NASTY, "detail": NASTY}]
    answers = {"/logs": NASTY, "/timeline": {"transitions": moves, "stages": stages}}
    with registry_at(tmp_path, free_port()) as registry, serving_babysitter(answers) as port:
        record = {"name": "evil", "host": "127.0.0.1", "port": port, "hostname": NASTY, "status": "running"}
        whole = {**record, "url": f"http://127.0.0.1:{port}", "metadata": {"type": NASTY}, "ttl_s": 3600}
        post(f"{registry}/services", {**whole, "instance_id": "i", "incarnation": 1})
        post(f"{registry}/services/evil/heartbeat", {**report, "instance_id": "i", "incarnation": 1})
        with page_of(browser, registry) as page:
            row(page, "evil").click()
            expect(page.locator("#d-log")).to_have_text(NASTY)
            expect(page.locator("#d-story")).to_contain_text(NASTY)
            expect(page.locator("#d-fault pre")).to_have_text(NASTY)
            expect(page.locator("#d-facts")).to_contain_text(NASTY)
            expect(page.locator(".job")).to_contain_text(NASTY)
            expect(row(page, "evil")).to_contain_text(NASTY)
            assert page.evaluate("[window.hit, document.images.length, document.scripts.length]") == [None, 0, 1]
        bare = browser.new_page()
        bare.goto(f"{registry}/ui")
        with pytest.raises(Error, match="TrustedHTML"):  # even a defect could not make it markup
            bare.evaluate("document.body.innerHTML = '<b>x</b>'")
        bare.close()


def test_a_lost_registry_is_said_and_its_return_noticed(browser: Browser, tmp_path: Path) -> None:
    port = free_port()
    with page_of(browser, None, faults_allowed=True) as page:
        with registry_at(tmp_path, port) as registry:
            page.goto(f"{registry}/ui")
            expect(page.locator("#empty")).to_contain_text("No replica yet")
            expect(page.locator("#no-router")).to_be_visible()
        expect(page.locator("#banner")).to_contain_text("cannot be reached")
        expect(page.locator("#main")).to_have_attribute("data-stale", "true")
        expect(page.locator("#live")).to_contain_text(re.compile("Disconnected|Connecting"))
        with registry_at(tmp_path, port) as registry:
            url = "http://127.0.0.1:9000"
            record = {"host": "127.0.0.1", "port": 9000, "hostname": "n", "url": url, "status": "running"}
            post(f"{registry}/services", {**record, "name": "fresh", "metadata": {"type": "vLLM"}})
            expect(row(page, "fresh")).to_be_visible()
            expect(page.locator("#banner")).to_be_hidden()
            expect(page.locator("#live")).to_have_text("Live")


def test_a_guarded_registry_asks_for_a_token_and_a_reader_may_only_read(browser: Browser, tmp_path: Path) -> None:
    tokens = {"read": "r" * 40, "register": "g" * 40}
    flags = []
    for level, token in tokens.items():
        (tmp_path / level).write_text(token)
        (tmp_path / level).chmod(0o600)
        flags += [f"--{level}-token-file", str(tmp_path / level)]
    with (
        registry_at(tmp_path, free_port(), *flags) as registry,
        page_of(browser, registry, faults_allowed=True) as page,
    ):
        url = "http://127.0.0.1:9000"
        record = {"host": "127.0.0.1", "port": 9000, "hostname": "n", "url": url, "status": "running"}
        body = {**record, "name": "a-server", "metadata": {"type": "openai-api"}}
        post(f"{registry}/services", body, token=tokens["register"])
        for token, shown in (("wrong", "does not take that token"), (tokens["read"], None)):
            expect(page.locator("#access")).to_be_visible()
            page.locator("#a-registry").fill(token)
            page.keyboard.press("Enter")
            if shown:
                expect(page.locator("#a-text")).to_contain_text(shown)
        expect(page.locator("#access-label")).to_have_text("Read only")
        row(page, "a-server").click()
        expect(page.get_by_role("button", name="Drain", exact=True)).to_be_disabled()
        assert page.evaluate("localStorage.length") == 0
        page.locator("#access-open").click()
        page.locator("#a-registry").fill(tokens["register"])
        page.keyboard.press("Enter")
        expect(page.locator("#access-label")).to_have_text("Operator")
        page.get_by_role("button", name="Drain", exact=True).click()
        expect(page.locator("#d-state")).to_have_text("Draining")


def test_five_hundred_replicas_on_a_desk_and_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    with registry_at(tmp_path, free_port()) as registry, paper_fleet(registry, 500):
        with page_of(browser, registry) as page:
            expect(page.locator("#rows tr")).to_have_count(500)
            expect(page.locator(".tile")).to_have_count(500)
            expect(page.locator("#fleet-aside")).to_have_text("20 nodes · 6 models")
            first = page.locator("#rows tr").first
            expect(first).to_contain_text("Failed")  # what is wrong stands first
            expect(page.locator(".chart").first.locator("path").first).to_be_attached()
            page.locator("#search").fill("node-03 qwen")
            expect(page.locator("#count")).to_contain_text("of 500")
            slow_ms = page.evaluate(
                "() => { const at = performance.now(); dirtyAll = true; draw(); return performance.now() - at; }"
            )
            assert slow_ms < 2000
            for number, told in ((4, "4 run, 0 wait"), (106, "1 run, 2 wait")):
                page.evaluate(f"open({name_of(number)!r})")
                facts = page.locator("#d-facts")
                expect(facts).to_contain_text(told)
                expect(facts).to_contain_text("KV cache" + f"{number % 100} % full")
                expect(facts).to_contain_text("50 % of 123,456 tokens")
            page.evaluate(f"open({name_of(3)!r})")
            expect(page.locator("#d-facts")).to_contain_text("Memory")
            expect(page.locator("#d-facts")).not_to_contain_text("KV cache")
            peaks = "[0, 1e-9, 0.00123, 0.5, 0.99, 1, 9.79, 9.81, 9.99, 10, 99.5, 1e9]"
            assert page.evaluate(f"{peaks}.every((peak) => nice(peak) >= peak && nice(peak) < 1e10)")
        with page_of(browser, registry, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True) as page:
            expect(page.locator("#rows tr")).to_have_count(500)
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            page.locator("#rows tr").first.tap()
            expect(page.locator("#detail")).to_be_visible()
            assert page.locator("#detail").evaluate("it => it.offsetWidth") == 390
            assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_group_is_one_replica_with_its_members_in_it(browser: Browser, tmp_path: Path) -> None:
    def tell(name: str, rank: int | None, status: str, *, node: str, error: str | None = None) -> None:
        marks = {} if rank is None else {"group": "large-1", "rank": rank, "deployment": "large"}
        life = {"instance_id": name, "incarnation": 1}
        here = {"host": "127.0.0.1", "port": port, "hostname": node, "url": f"http://127.0.0.1:{port}"}
        record = {**here, **life, "status": "running"}
        post(f"{url}/services", {**record, "name": name, "metadata": {"type": "vLLM", **marks}, "ttl_s": 3600})
        heard = {**life, "replica_id": name, "status": status, "model_name": "big", "error_message": error}
        post(f"{url}/services/{name}/heartbeat", heard)

    with registry_at(tmp_path, free_port()) as url, serving_babysitter({}) as port, page_of(browser, None) as page:
        tell("other", None, "ready", node="node-1")
        tell("lead", 0, "ready", node="node-1")
        tell("second", 1, "ready", node="node-2")
        page.goto(f"{url}/ui")
        expect(page.locator("#of")).to_have_text("of 2 ready")
        expect(page.locator("#fleet-aside")).to_contain_text("2 nodes")
        expect(page.locator(".tile")).to_have_count(2)
        group = page.locator(".tile.group")
        expect(group.locator(".marks .s-ready")).to_have_count(2)
        expect(page.locator("#rows tr")).to_have_count(2)
        expect(row(page, "lead")).to_contain_text("node-1, node-2")
        members = row(page, "lead").locator("details")
        expect(members.get_by_role("button", name="second")).to_be_hidden()
        members.locator("summary").click()
        expect(page.locator("#detail")).to_be_hidden()
        expect(members.get_by_role("button", name="second")).to_contain_text("rank 1 · node-2 · Ready")

        tell("second", 1, "failed", node="node-2", error="exit code 9")
        tell("lead", 0, "unhealthy", node="node-1", error="its group is broken: rank 1 on node-2 failed")
        expect(page.locator("#ready")).to_have_text("1")
        expect(row(page, "lead").locator(".k-state")).to_have_text("Failed")
        expect(row(page, "lead").locator(".why")).to_have_text("exit code 9")
        expect(group).to_have_class("tile s-failed group")
        expect(group.locator(".marks i")).to_have_class(["dot s-unhealthy", "dot s-failed"])

        page.locator("#search").fill("second")
        expect(page.locator("#rows tr")).to_have_count(1)
        group.click()
        expect(page.locator("#d-state")).to_have_text("Failed")
        page.locator("#d-parts").get_by_role("button", name="second").click()
        expect(page.locator("#d-name")).to_have_text("second")
        expect(group).to_have_attribute("aria-current", "true")
        expect(page.locator("#d-parts .part")).to_have_count(2)
