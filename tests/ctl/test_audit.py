"""`svcctl audit`."""

from aiohttp import web

from tests.ctl.conftest import Suite

LINE = {
    "time": "2026-11-29T12:00:00.000Z",
    "service": "registry",
    "who": "token admin",
    "remote": "10.0.0.7",
    "method": "DELETE",
    "path": "/api/v1/deployments/d",
    "status": 202,
    "request_id": "r-1",
}


async def test_audit_shows_the_lines_and_names_nodes_that_were_silent(suite: Suite) -> None:
    asked = []

    async def told(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        return web.json_response({"total": 1, "lines": [LINE], "missing": ["n2"]})

    suite.answers["registry GET /api/v1/audit"] = told
    done = await suite.ctl("audit", "--since", "2026-11-01", "--who", "admin", "--limit", "5")
    assert done.code == 0, done.stderr
    assert "DELETE /api/v1/deployments/d" in done.stdout
    assert "token admin" in done.stdout
    assert "without n2: no answer from the node's agent" in done.stderr
    assert asked == [{"since": "1793491200", "limit": "5", "who": "admin"}]
    shown = await suite.ctl("audit", "--json")
    assert shown.json["lines"] == [LINE]


async def test_audit_of_a_quiet_day_says_so(suite: Suite) -> None:
    suite.answers["registry GET /api/v1/audit"] = {"total": 0, "lines": [], "missing": []}
    done = await suite.ctl("audit")
    assert (done.code, done.stdout) == (0, "")
    assert "nothing was changed" in done.stderr
