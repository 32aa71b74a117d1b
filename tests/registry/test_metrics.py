from prometheus_client.parser import text_string_to_metric_families

from tests.registry.conftest import Client, body, parts


async def scrape(client: Client) -> dict[tuple[str, tuple[str, ...]], float]:
    async with client.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await answer.text()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_show_records_answers_and_watchers(client: Client) -> None:
    await client.post("/services", json=body("a"))
    await client.post("/services", json=body("b", status="my own word"))
    await client.post("/services/none/heartbeat")
    await client.get("/nowhere/at/all")
    found = await scrape(client)
    assert found["registry_services", ("running",)] == 1
    assert found["registry_services", ("other",)] == 1
    assert found["registry_services_healthy", ()] == 1
    assert found["registry_revision", ()] == 2
    assert found["registry_http_answers_total", ("/services", "201")] == 2
    assert found["registry_http_answers_total", ("/services/{name}/heartbeat", "404")] == 1
    assert found["registry_http_answers_total", ("none", "404")] == 1
    assert found["registry_self_preservation", ()] == 0
    assert found["registry_store_away", ()] == 0


async def test_too_many_connections_are_503_and_closed_C14(client: Client) -> None:
    parts(client).connections.count = parts(client).connections.limit + 1
    async with client.get("/services") as answer:
        assert answer.status == 503
        assert answer.headers["Connection"] == "close"
    parts(client).connections.count = 1
    async with client.get("/services") as answer:
        assert answer.status == 200
