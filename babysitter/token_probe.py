"""One token asked of the server: the proof that it can work, which neither its list of models nor `/health` is (W26, W45).

llama.cpp lists its model while it still loads it, and a vLLM whose engine has died or hangs lists it for ever. What an
engine can be asked is learned: the first of `PATHS` that it answers. Engines for embeddings or reranking are asked for
that instead (W51).
"""

from collections.abc import Mapping
from http import HTTPStatus

import aiohttp
import msgspec
import structlog

from babysitter.probe import NotReady
from common.http.client import CONNECT_TIMEOUT_S, make_like, read_bounded

log = structlog.get_logger(__name__)
AUTO = "auto"
PATHS = ("/v1/completions", "/v1/chat/completions", "/chat/completions", "/v1/embeddings", "/v1/rerank")
"""Where an engine that nobody described is asked, in this order."""
_CHAT = {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
BODIES: Mapping[str, Mapping[str, object]] = {
    "/chat/completions": _CHAT,
    "/completions": {"prompt": "1", "max_tokens": 1},
    "/messages": _CHAT,
    "/responses": {"input": "1", "max_output_tokens": 16},  # the least that OpenAI's API allows
    "/embeddings": {"input": "1"},
    "/rerank": {"query": "1", "documents": ["1"]},
    "/score": {"text_1": "1", "text_2": "1"},
    "/completion": {"prompt": "1", "n_predict": 1},  # llama.cpp's own
}
"""The shortest request by the end of its path; `model` is added."""
ABSENT = frozenset(
    {
        HTTPStatus.BAD_REQUEST,  # vLLM: "The model does not support Completions API"
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.NOT_IMPLEMENTED,  # llama.cpp, asked for embeddings without being started for them
    }
)
"""Statuses by which an engine says: this is not what I do."""
FAILED = HTTPStatus.INTERNAL_SERVER_ERROR
"""A fault, unless a later call is answered: so llama.cpp's encoders refuse to write ("does not support logits computation")."""
ANSWER_LIMIT_BYTES = 4 << 20
EXCERPT_BYTES = 200


class TokenProbe:
    """Asks one server for one token.

    Args:
        session: The process's session.
        path: Where; `AUTO`: the first of `PATHS` that the server answers; empty: nowhere.
    """

    def __init__(self, session: aiohttp.ClientSession, path: str) -> None:
        self._session = session
        self._paths = PATHS if path == AUTO else (path,) if path else ()
        self._is_learned = path != AUTO

    @property
    def is_wanted(self) -> bool:
        """False once it is known that there is nothing to ask."""
        return bool(self._paths)

    async def ask(self, base_url: str, model: str, *, timeout_s: float) -> None:
        """Have the server make one token.

        A server that has none of the calls that we know must be believed without.

        Raises:
            NotReady: It has one, and made no token within `timeout_s`.
        """
        refused: list[str] = []
        fault = None
        for path in self._paths:
            status, reason = await self._post(base_url + path, {"model": model, **body_for(path)}, path, timeout_s)
            if status == HTTPStatus.TOO_MANY_REQUESTS:
                return  # busy, and well enough to say so
            if status == HTTPStatus.OK:
                self._paths, self._is_learned = (path,), True
                return
            if status == FAILED:
                fault = fault or reason
            if self._is_learned or status not in {*ABSENT, FAILED}:
                raise NotReady(reason)
            refused.append(reason)
        if fault is not None:
            raise NotReady(fault)
        if refused:
            log.info("probe.no_generating_call", refused=refused)
            self._paths = ()

    async def _post(self, url: str, body: Mapping[str, object], path: str, timeout_s: float) -> tuple[int, str]:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with (
                make_like(self._session) as session,
                session.post(url, json=body, timeout=timeout, allow_redirects=False) as answer,
            ):
                raw = await read_bounded(answer, ANSWER_LIMIT_BYTES)
        except TimeoutError:
            raise NotReady(f"{path}: no token within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise NotReady(f"{path}: {type(error).__name__}: {error}") from error
        excerpt = " ".join(raw[:EXCERPT_BYTES].decode(errors="replace").split())
        if answer.status == HTTPStatus.OK and is_error(raw):
            return HTTPStatus.BAD_GATEWAY, f"{path}: status 200, with an error in it: {excerpt}"
        return answer.status, f"{path}: status {answer.status} {excerpt}".rstrip()


def body_for(path: str) -> Mapping[str, object]:
    """The shortest request at `path`; an unknown path is taken for a completion."""
    return next((body for end, body in BODIES.items() if path.endswith(end)), BODIES["/completions"])


def is_error(raw: bytes) -> bool:
    """Whether a body that came with status 200 is an error all the same."""
    try:
        content = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return True
    return isinstance(content, dict) and bool(content.get("error"))
