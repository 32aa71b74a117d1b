"""The node's accelerators: found or told, given out once, claimed by hand-made files, told to servers and registries."""

import asyncio
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins

from babysitter.agent import accelerator_watch, processes
from babysitter.agent.accelerator_watch import AcceleratorWatch
from babysitter.agent.accelerators import (
    VARIABLES,
    Device,
    Held,
    Hold,
    Lacking,
    Need,
    Taken,
    choose,
    claimed_value,
    environment,
    glance,
    indices_in,
)
from babysitter.agent.aside import Aside
from babysitter.agent.registration import AgentRegistration
from babysitter.agent.settings import AcceleratorSettings, AgentSettings
from common.clock import SystemClock
from common.http.errors import ApiError
from tests.babysitter.agent.conftest import Client, StartAgent, create, manager_of, reached, wanted
from tests.babysitter.agent.pynvml_double import PynvmlDouble

FOUR = [Device(index, "cuda", 1000) for index in range(4)]
TOLD: dict[str, Any] = {"kind": "cuda", "count": 2, "memory_mb": 1000}


def held(*holds: Hold, **claims: set[int]) -> Held:
    return Held(holds, {name: frozenset(indices) for name, indices in claims.items()})


@pytest.mark.parametrize(
    ("need", "has", "given"),
    [
        (Need(), held(), []),
        (Need(2), held(), [0, 1]),
        (Need(2), held(Hold("a", [0]), file={2}), [1, 3]),
        (Need(1), held(Hold("a", [0], 100)), [1]),  # a shared one is nobody's alone
        (Need(memory_mb=300, shares=True), held(Hold("a", [1], 600), Hold("b", [2], 200)), [1]),  # the best fit
        (Need(memory_mb=500, shares=True), held(Hold("a", [1], 600), Hold("b", [2], 200)), [2]),
        (Need(memory_mb=500, shares=True), held(Hold("a", [0]), Hold("b", [1, 2], 600)), [3]),
        (Need(2, 400, shares=True), held(Hold("a", [0], 600), Hold("b", [3], 500)), [0, 3]),
        (Need(1, 1000), held(Hold("a", [0], 1)), [1]),
        (Need(1, shares=True), held(Hold("a", [0], 1)), [1]),  # without a size it gets all of one
    ],
)
def test_a_replica_gets_what_it_needs(need: Need, has: Held, given: list[int]) -> None:
    assert choose(FOUR, has, need) == given


def test_of_different_sizes_the_smallest_that_does() -> None:
    mixed = [Device(0, "cuda", 80_000), Device(1, "cuda", 24_000), Device(2, "cuda")]
    assert choose(mixed, held(), Need(1, 20_000)) == [2]
    assert choose(mixed[:2], held(), Need(1, 20_000)) == [1]
    assert choose(mixed[:2], held(), Need(1, 40_000)) == [0]


@pytest.mark.parametrize(
    ("need", "has", "error", "text"),
    [
        (Need(4), held(Hold("a", [0]), file={3}), Taken, "needs 4 cuda, 2 are free"),
        (Need(1), held(Hold("a", range(4))), Taken, "needs 1 cuda, none is free"),
        (Need(5), held(), Lacking, "needs 5 cuda, the node has 4"),
        (Need(1, 2000), held(), Lacking, "needs 1 cuda with 2000 MiB each, the node has none"),
        (
            Need(memory_mb=700, shares=True),
            held(Hold("a", range(4), 400)),
            Taken,
            "needs 1 cuda with 700 MiB to share, none is free",
        ),
    ],
)
def test_what_cannot_be_given_is_said_in_words(need: Need, has: Held, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        choose(FOUR, has, need)
    assert str(caught.value) == text


def test_a_node_without_any_and_one_of_unknown_memory_say_so() -> None:
    with pytest.raises(Lacking, match="needs 1 accelerators, the node has none"):
        choose([], held(), Need(1))
    with pytest.raises(Lacking, match=r"set accelerators\.memory_mb") as caught:
        choose([Device(0, "mlu")], held(), Need(memory_mb=5, shares=True))
    assert caught.value.field == "memory_mb"


def test_thousands_of_random_replicas_never_have_one_twice() -> None:
    chance = random.Random(20)
    for _ in range(300):
        sizes = {index: chance.choice((8, 16, 24)) for index in range(chance.randrange(1, 9))}
        devices = [Device(index, "cuda", size) for index, size in sizes.items()]
        claims = {"f": frozenset(index for index in sizes if chance.random() < 0.2)}
        holds: list[Hold] = []
        for number in range(30):
            if holds and chance.random() < 0.4:
                holds.pop(chance.randrange(len(holds)))
            need = Need(chance.randrange(4), chance.choice((0, 4, 8, 12)), shares=chance.random() < 0.5)
            try:
                given = choose(devices, Held(holds, claims), need)
            except (Lacking, Taken):
                continue
            assert len(set(given)) == len(given) == need.count
            holds.append(Hold(f"r{number}", given, need.memory_mb if need.is_shared else 0))
            for index, size in sizes.items():
                sharing = [hold.shared_mb for hold in holds if index in hold.indices]
                assert not (sharing and index in claims["f"])
                assert sharing in ([], [0]) or (0 not in sharing and sum(sharing) <= size)


def test_a_server_is_told_its_own_and_one_without_sees_none_unless_it_may() -> None:
    cuda = environment("CUDA_VISIBLE_DEVICES", [1, 3], hide=True)
    assert cuda == {"CUDA_VISIBLE_DEVICES": "1,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert environment("MLU_VISIBLE_DEVICES", [0], hide=False) == {"MLU_VISIBLE_DEVICES": "0"}
    assert environment("MLU_VISIBLE_DEVICES", [], hide=True) == {"MLU_VISIBLE_DEVICES": ""}
    assert environment("MLU_VISIBLE_DEVICES", [], hide=False) == {}


@pytest.mark.parametrize(
    ("value", "meant"),
    [("0, 2", {0, 2}), ("", set()), ("all", {0, 1}), ("GPU-8932f937", {0, 1}), ("-1", {0, 1}), ("0,²", {0, 1})],
)
def test_a_claim_that_is_no_number_claims_all(value: str, meant: set[int]) -> None:
    assert indices_in(value, range(2)) == meant


def test_a_claim_is_found_in_the_backends_env_and_at_the_top() -> None:
    assert claimed_value({"backend": {"env": {"V": 3}}}, "V") == "3"
    assert claimed_value({"env": {"V": "1,2"}, "backend": "odd"}, "V") == "1,2"
    assert claimed_value({"backend": {"env": {"W": "1"}}}, "V") == ""


def test_a_heartbeat_names_a_bounded_number_of_replicas_with_each() -> None:
    shown = glance(FOUR[:1], held(*(Hold(f"r{number}", [0], 1) for number in range(500)), f={0}))
    assert (len(shown[0].replicas), shown[0].shared_mb, shown[0].claims) == (64, 500, ["f"])


@pytest.mark.parametrize(
    ("given", "text"),
    [({"count": 2}, "count needs kind"), ({"kind": "abacus"}, "needs variable"), ({"kind": "CUDA"}, "pattern")],
)
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AcceleratorSettings(**given)


def test_every_known_kind_has_its_variable_and_others_can_have_one() -> None:
    assert AcceleratorSettings(kind="ascend").assigning == "ASCEND_RT_VISIBLE_DEVICES"
    assert AcceleratorSettings(kind="abacus", variable="BEADS").assigning == "BEADS"
    assert set(VARIABLES) >= {"cuda", "rocm", "hpcc", "ascend", "musa", "mlu"}


# The watch.


def watch(env: dict[str, str] | None = None, **settings: Any) -> AcceleratorWatch:
    return AcceleratorWatch(AcceleratorSettings(**settings), env or {}, interval_s=0.01)


def indices(seen: AcceleratorWatch) -> list[int]:
    return [device.index for device in seen.devices]


async def test_nvml_finds_and_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    double = PynvmlDouble(24_000, 80_000, broken=frozenset({1}))
    monkeypatch.setitem(sys.modules, "pynvml", double)
    seen = watch()
    await seen.look()
    assert seen.devices == (Device(0, "cuda", 24_000), Device(1, "cuda", 0))
    assert to_builtins(seen.readings) == [{"index": 0, "used_mb": 1, "busy_percent": 0}, {"index": 1}]
    double.broken = frozenset()
    await seen.look()
    assert seen.devices[1].memory_mb == 80_000
    assert to_builtins(seen.readings)[1] == {"index": 1, "used_mb": 2, "busy_percent": 10}
    assert double.open == 0


@pytest.mark.parametrize("module", [None, PynvmlDouble(fault="Driver Not Loaded")])
async def test_no_library_or_no_driver_is_said_once_and_means_none(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    seen = watch()
    for _ in range(3):
        await seen.look()
    assert seen.devices == ()
    assert capsys.readouterr().out.count("accelerators.none_found") == 1


async def test_a_driver_that_hangs_is_given_up_in_time_and_blocks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator_watch, "READ_TIMEOUT_S", 0.1)
    double = PynvmlDouble(10, 10)
    monkeypatch.setitem(sys.modules, "pynvml", double)
    seen = watch(**TOLD)
    await seen.look()
    assert len(seen.readings) == 2
    double.hangs_s = 1.0
    loop = asyncio.get_running_loop()
    began, ticks = loop.time(), 0
    waiting = asyncio.ensure_future(seen.look())
    while not waiting.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert loop.time() - began < 0.9
    assert ticks > 3
    assert (indices(seen), seen.readings) == ([0, 1], [])
    await seen.look()
    assert double.calls == 2, "while one call hangs no other is begun"
    double.hangs_s = 0
    await asyncio.sleep(1.0)
    await seen.look()
    assert len(seen.readings) == 2


async def test_what_a_call_aside_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        await Aside("t").call(lambda: 1 // 0, timeout_s=5)


@pytest.mark.parametrize(
    ("variable", "ours"), [("2,3", [2, 3]), ("0", [0]), ("3,2,1", [1, 2]), ("", []), ("GPU-8932f937", [])]
)
def test_an_agent_that_was_given_some_gives_out_no_others(variable: str, ours: list[int]) -> None:
    assert indices(watch({"CUDA_VISIBLE_DEVICES": variable}, **TOLD)) == ours


# The agent.


def claim(path: Path, text: str) -> Path:
    path.write_text(f'[backend]\ntype = "vllm"\nenv = {{ CUDA_VISIBLE_DEVICES = "{text}" }}\n')
    return path


async def refused(client: Client, **changes: Any) -> tuple[int, dict[str, Any]]:
    async with client.post("/api/v1/replicas", json=wanted(**changes)) as answer:
        return answer.status, await answer.json()


async def test_two_at_once_for_the_last_one_and_one_of_them_gets_it(start_agent: StartAgent) -> None:
    client = await start_agent(accelerators={**TOLD, "count": 1})
    answers = await asyncio.gather(*(refused(client, accelerators=1) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [201, *[503] * 7]
    assert {body["error"] for status, body in answers if status == 503} == {"needs 1 cuda, none is free"}
    assert {body["code"] for status, body in answers if status == 503} == {"no_accelerators"}


async def test_what_a_replica_has_is_held_until_it_is_over_and_given_again_then(start_agent: StartAgent) -> None:
    client = await start_agent(accelerators=TOLD)
    first = await create(client, accelerators=2)
    assert (await refused(client, accelerators=1))[0] == 503
    await create(client)
    await reached(client, first, "ready")
    async with client.post(f"/api/v1/replicas/{first}/stop", json={}) as answer:
        assert answer.status == 200
    await reached(client, first, "stopped")
    second = await create(client, accelerators=1)
    assert [hold.replica_id for hold in manager_of(client).holds()] == [second]


async def test_more_than_the_node_has_is_the_requests_fault(start_agent: StartAgent) -> None:
    client = await start_agent(accelerators=TOLD)
    status, body = await refused(client, accelerators=3)
    assert (status, body["field"], body["error"]) == (
        422,
        "accelerators",
        "field 'accelerators': needs 3 cuda, the node has 2",
    )
    status, body = await refused(client, accelerators=1, memory_mb=2000)
    assert (status, body["field"]) == (422, "memory_mb")
    for wrong in (-1, 1025, "many"):
        assert (await refused(client, accelerators=wrong))[0] == 422


async def test_the_same_request_again_holds_nothing_more(start_agent: StartAgent) -> None:
    client = await start_agent(accelerators=TOLD)
    first = await create(client, accelerators=2, request_id="q")
    status, body = await refused(client, accelerators=2, request_id="q")
    assert (status, body["replica_id"]) == (200, first)


async def test_its_server_is_told_and_one_without_any_sees_none(start_agent: StartAgent) -> None:
    client = await start_agent(accelerators=TOLD)
    await create(client, accelerators=1)
    seen = {}
    for accelerators in (1, 0):
        replica_id = await create(client, accelerators=accelerators)
        await reached(client, replica_id, "ready")
        pid = processes.scan(manager_of(client).store.root)[replica_id][0].process.pid
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        seen[accelerators] = [word.decode() for word in words if word.startswith(b"CUDA_")]
    assert sorted(seen[1]) == ["CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=1"]
    assert seen[0] == ["CUDA_VISIBLE_DEVICES="]


async def test_claims_that_appear_are_left_alone_at_once(start_agent: StartAgent, tmp_path: Path) -> None:
    client = await start_agent(accelerators={**TOLD, "claims": [str(tmp_path / "*.toml")]})
    mine = claim(tmp_path / "mine.toml", "1")
    status, body = await refused(client, accelerators=2)
    assert (status, body["error"]) == (503, "needs 2 cuda, 1 is free")
    mine.unlink()
    await create(client, accelerators=2)


async def test_a_claims_file_that_breaks_claims_what_it_did(start_agent: StartAgent, tmp_path: Path) -> None:
    client = await start_agent(accelerators={**TOLD, "claims": [str(tmp_path / "*.toml")]})
    mine = claim(tmp_path / "mine.toml", "0")
    assert (await refused(client, accelerators=2))[0] == 503
    mine.write_text("[backend")
    status, body = await refused(client, accelerators=2)
    assert (status, body["error"]) == (503, "needs 2 cuda, 1 is free")
    await create(client, accelerators=1)
    await create(client)


async def test_of_a_claims_file_that_could_never_be_read_nothing_is_guessed(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("[backend")
    client = await start_agent(accelerators={**TOLD, "claims": [str(tmp_path / "*.toml")]})
    status, body = await refused(client, accelerators=1)
    assert (status, body["code"]) == (503, "no_accelerators")
    assert str(mine) in body["error"]
    await create(client)
    claim(mine, "0")
    await create(client, accelerators=1)


async def test_a_template_says_what_it_needs_and_a_request_may_say_otherwise(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    head = '[parameters.model]\nrequired = true\n[backend]\ntype = "mock"\nmodels = ["{model}"]\n[needs]\n'
    (folder / "part.toml").write_text(head + "memory_mb = 600\nshares = true\n")
    (folder / "whole.toml").write_text(head + "accelerators = 2\n")
    (folder / "assigns.toml").write_text(head.replace("[needs]", 'env = { MLU_VISIBLE_DEVICES = "0" }'))
    mine = tmp_path / "mine.toml"
    settings = {**TOLD, "claims": [str(mine)]}
    client = await start_agent(accelerators=settings, templates_dir=folder)

    async def make(template: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        body = {"backend": {"template": template, "parameters": {"model": "m"}}, **changes}
        async with client.post("/api/v1/replicas", json=body) as answer:
            return answer.status, await answer.json()

    assert (await make("assigns"))[0] == 422
    assert (await make("part"))[0] == 201
    status, body = await make("whole")
    assert (status, body["error"]) == (503, "needs 2 cuda, 1 is free")
    assert (await make("part", memory_mb=400, request_id="q"))[0] == 201
    holds = [(list(hold.indices), hold.shared_mb) for hold in manager_of(client).holds()]
    assert sorted(holds) == [([0], 400), ([0], 600)]
    mine.write_text("[backend")
    assert (await make("part", memory_mb=400, request_id="q"))[0] == 200, "a call that comes again needs nothing new"
    assert (await make("whole"))[0] == 503
    assert (await make("whole", accelerators=0))[0] == 201, "what needs none cares for no claims"


async def test_claims_files_that_cannot_be_read_in_time_give_nothing_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(accelerator_watch, "READ_TIMEOUT_S", 0.05)
    seen = watch(**TOLD, claims=[str(tmp_path / "*.toml")])
    monkeypatch.setattr(seen, "_claimed", lambda: time.sleep(0.3))
    with pytest.raises(ApiError, match=r"not read within 0\.05 s") as caught:
        await seen.read_claims()
    assert caught.value.status == 503


async def test_heartbeat_and_metrics_tell_of_them(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", PynvmlDouble(1000, 1000))
    mine = claim(tmp_path / "mine.toml", "1")
    settings = {**TOLD, "claims": [str(tmp_path / "*.toml")]}
    client = await start_agent(accelerators=settings, labels={"zone": "a"})
    manager = manager_of(client)
    await manager.accelerators.look()
    replica_id = await create(client, accelerators=1)
    lease = AgentRegistration(AgentSettings(node="n1"), manager, clock=SystemClock(), port=1, instance_id="i")
    report = to_builtins(lease.report())
    assert report["labels"] == {"zone": "a"}
    assert report["accelerators"] == [
        {"index": 0, "kind": "cuda", "memory_mb": 1000, "replicas": [replica_id], "claims": [], "shared_mb": 0},
        {"index": 1, "kind": "cuda", "memory_mb": 1000, "replicas": [], "claims": [str(mine)], "shared_mb": 0},
    ]
    assert report["readings"][1] == {"index": 1, "used_mb": 2, "busy_percent": 10}
    async with client.get("/metrics") as answer:
        page = await answer.text()
    assert 'svc_agent_accelerator_held{index="0",kind="cuda"} 1.0' in page
    assert 'svc_agent_accelerator_used_bytes{index="1",kind="cuda"} 2.097152e+06' in page
    assert 'svc_agent_accelerator_busy_ratio{index="1",kind="cuda"} 0.1' in page
