"""PURE: the bodies that the mock answers with. The same model and prompt give the same text on every server."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

EMBEDDING_SIZE = 8
SEEDED_LIMIT = 4096
"""Words of an answer that does not end before."""
_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xu", "za")
Body: TypeAlias = dict[str, Any]
"""A request's or an answer's JSON, as OpenAI's API has it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation: its words (a token each), and what the answer's head needs.

    `created` is epoch seconds; `server` is shown as `system_fingerprint`, so that a test can tell replicas apart.
    """

    identity: str
    created: int
    model: str
    server: str
    words: list[str]
    finish_reason: str
    prompt_tokens: int
    chat: bool

    def usage(self) -> dict[str, int]:
        """Token counts; a token is a word."""
        total = self.prompt_tokens + len(self.words)
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": len(self.words), "total_tokens": total}

    def whole(self) -> Body:
        """The body of an answer that is no stream."""
        text = "".join(self.words)
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **content, "finish_reason": self.finish_reason, "logprobs": None}
        return {**self._head("chat.completion" if self.chat else "text_completion"), **self._tail([choice])}

    def chunks(self, *, usage: bool) -> Iterator[Body]:
        """The stream's events before `[DONE]`: one per word, the finish, and the usage when it was asked for."""
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")
        for number, word in enumerate(self.words):
            role = {"role": "assistant"} if number == 0 else {}
            content = {"delta": {**role, "content": word}} if self.chat else {"text": word}
            yield {**head, "choices": [{"index": 0, **content, "finish_reason": None}]}
        empty: Body = {"delta": {}} if self.chat else {"text": ""}
        yield {**head, "choices": [{"index": 0, **empty, "finish_reason": self.finish_reason}]}
        if usage:
            yield {**head, **self._tail([])}

    def _head(self, kind: str) -> Body:
        return {
            "id": self.identity,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.server,
        }

    def _tail(self, choices: list[Body]) -> Body:
        return {"choices": choices, "usage": self.usage()}


def text_of(body: Body) -> str:
    """All text of a request: `messages[].content` (a string, or parts with `text`), `prompt` or `input`."""
    texts: list[Any] = []
    for message in body.get("messages") or []:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [content]
        texts += [part["text"] if isinstance(part, dict) and "text" in part else part for part in parts]
    for name in ("prompt", "input"):
        value = body.get(name)
        texts += value if isinstance(value, list) else [value]
    return " ".join(part for part in texts if isinstance(part, str))


def words_for(model: str, prompt: str, count: int) -> list[str]:
    """`count` words that say who answers and then repeat the prompt."""
    text = ["This", "is", model, "answering:", *prompt.split()]
    repeated = itertools.islice(itertools.cycle(text), count)
    return [word if number == 0 else f" {word}" for number, word in enumerate(repeated)]


def seeded_words(before: str, count: int | None) -> tuple[list[str], bool]:
    """At most `count` words of which each follows from all the text before it, and whether the text came to its end.

    Whoever is given the text so far goes on as this would have.
    """
    words: list[str] = []
    state = blake2b(before.encode(), digest_size=8)
    while len(words) < (SEEDED_LIMIT if count is None else count):
        digest = state.digest()
        if digest[0] == 0:
            return words, True
        word = f" {_SYLLABLES[digest[1] % 16]}{_SYLLABLES[digest[2] % 16]}"
        words.append(word)
        state.update(word.encode())
    return words, False


def text_before(body: Body, *, chat: bool) -> str:
    """What a model of text would have read when it begins to write."""
    if not chat:
        return str(body.get("prompt") or "")
    messages = list(body.get("messages") or [])
    said = messages.pop()["content"] if body.get("continue_final_message") else ""
    return f"{text_of({'messages': messages})}\n{said}"


def embedding(text: str) -> list[float]:
    """A vector in [-1, 1] made from the text's hash."""
    digest = blake2b(text.encode(), digest_size=EMBEDDING_SIZE).digest()
    return [byte / 127.5 - 1.0 for byte in digest]


def model_list(models: list[str], created: int) -> list[Body]:
    """The model objects of `GET /v1/models`."""
    return [{"id": name, "object": "model", "created": created, "owned_by": "mock"} for name in models]
