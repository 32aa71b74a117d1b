"""What counts as an engine that can work."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from babysitter.probe import NotReady
from babysitter.token_probe import AUTO, PATHS, TokenProbe, body_for
from tests.simple_http import simple_server

OK: tuple[int, object] = (200, {"choices": [{}]})


class Backend:
    """A server that answers each path as told; any other is unknown to it."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, object]] = {}
        self.asked: list[tuple[str, dict[str, object]]] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.json()))
        status, body = self.answers.get(request.path, (404, {"error": "unknown"}))
        return web.json_response(body, status=status)


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
async def url(backend: Backend) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/{path:.*}", backend.handle)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def ask(url: str, path: str = AUTO, times: int = 1, timeout_s: float = 5.0) -> TokenProbe:
    async with aiohttp.ClientSession() as session:
        probe = TokenProbe(session, path)
        for _ in range(times):
            await probe.ask(url, "m", timeout_s=timeout_s)
        return probe


@pytest.mark.parametrize("path", PATHS)
async def test_engine_of_each_kind_is_asked_in_its_own_form_W51(backend: Backend, url: str, path: str) -> None:
    backend.answers[path] = OK
    probe = await ask(url, times=2)
    assert probe.is_wanted
    *_, (first, body), (second, _) = backend.asked
    assert (first, second) == (path, path)  # learned: nothing else is asked the second time
    assert body == {"model": "m", **body_for(path)}


async def test_engine_that_lists_models_while_it_loads_is_not_ready_W26(backend: Backend, url: str) -> None:
    backend.answers[PATHS[0]] = (503, {"error": {"message": "Loading model", "type": "unavailable_error"}})
    with pytest.raises(NotReady, match=r"/v1/completions: status 503 .*Loading model"):
        await ask(url)


async def test_engine_that_wants_a_key_is_not_ready_and_says_so_W33(backend: Backend, url: str) -> None:
    backend.answers[PATHS[0]] = (401, {"error": "Unauthorized"})
    with pytest.raises(NotReady, match=r"status 401 .*Unauthorized"):
        await ask(url)


async def test_error_with_status_200_is_no_token_W26(backend: Backend, url: str) -> None:
    backend.answers[PATHS[0]] = (200, {"error": {"message": "engine dead"}})
    with pytest.raises(NotReady, match=r"status 200, with an error in it: .*engine dead"):
        await ask(url)


async def test_engine_that_refuses_other_calls_unread_is_asked_in_its_own_form_W51_W65() -> None:
    with simple_server() as port:
        probe = await ask(f"http://127.0.0.1:{port}", AUTO)
    assert probe._paths == ("/v1/embeddings",)


async def test_encoder_that_answers_500_when_it_is_to_write_is_asked_in_its_own_form_W51(
    backend: Backend, url: str
) -> None:
    words = {"error": {"code": 500, "message": "the current context does not support logits computation. skipping"}}
    backend.answers = {PATHS[0]: (500, words), PATHS[1]: (500, words), "/v1/embeddings": OK}
    await ask(url, times=2)
    assert [path for path, _ in backend.asked][-2:] == ["/v1/embeddings"] * 2


async def test_engine_that_fails_and_answers_nothing_else_is_not_ready_for_its_first_reason_W26(
    backend: Backend, url: str
) -> None:
    backend.answers[PATHS[0]] = (500, {"error": "EngineCore died"})
    with pytest.raises(NotReady, match=r"/v1/completions: status 500 .*EngineCore died"):
        await ask(url)
    backend.answers[PATHS[0]] = OK
    assert (await ask(url)).is_wanted


async def test_engine_without_any_known_call_is_believed_without_a_token(backend: Backend, url: str) -> None:
    probe = await ask(url, times=2)
    assert [path for path, _ in backend.asked] == list(PATHS)
    assert not probe.is_wanted


async def test_call_that_worked_and_is_gone_is_a_fault_W26(backend: Backend, url: str) -> None:
    backend.answers[PATHS[1]] = OK
    async with aiohttp.ClientSession() as session:
        probe = TokenProbe(session, AUTO)
        await probe.ask(url, "m", timeout_s=5)
        del backend.answers[PATHS[1]]
        with pytest.raises(NotReady, match="/v1/chat/completions: status 404"):
            await probe.ask(url, "m", timeout_s=5)


async def test_named_path_must_be_there(url: str) -> None:
    with pytest.raises(NotReady, match="/v1/responses: status 404"):
        await ask(url, "/v1/responses")


async def test_nothing_is_asked_where_no_path_is_wanted(backend: Backend, url: str) -> None:
    assert not (await ask(url, "")).is_wanted
    assert backend.asked == []


async def test_busy_engine_is_no_sick_one(backend: Backend, url: str) -> None:
    backend.answers[PATHS[0]] = (429, {"error": "busy"})
    await ask(url)
    assert len(backend.asked) == 1


@pytest.mark.parametrize(
    ("path", "member"),
    [("/v1/score", "text_1"), ("/completion", "n_predict"), ("/v1/messages", "messages"), ("/own/call", "prompt")],
)
def test_body_goes_by_the_end_of_the_path(path: str, member: str) -> None:
    assert member in body_for(path)
