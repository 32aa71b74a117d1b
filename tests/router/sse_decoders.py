"""Doubles of event stream decoders whose packages do not install here, named for what they copy.

Each follows the published rules of one client, no more: lines are gathered into events, and what a client fails on is an
exception. The official Python and Node clients are tested as they are (test_clients.py).
"""

import json
from collections.abc import Callable, Iterator
from typing import Any


def go_before_3_43(stream: bytes) -> Iterator[Any]:
    """openai-go's `eventStreamDecoder`, up to 3.42: every empty line dispatches, an event without data too."""
    data = b""
    for line in stream.splitlines():
        if not line:
            if data.startswith(b"[DONE]"):
                return
            yield json.loads(data)  # of nothing: "unexpected end of JSON input"
            data = b""
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data += value.removeprefix(b" ") + b"\n"


def java(stream: bytes) -> Iterator[Any]:
    """openai-java's `SseHandler`: an empty line dispatches if anything was gathered; a line with `:` first is none."""
    fields: dict[bytes, bytes] = {}
    for line in stream.splitlines():
        if not line:
            if fields:
                data, fields = fields.get(b"data", b""), {}
                if data.startswith(b"[DONE]"):
                    return
                yield json.loads(data)
        elif not line.startswith(b":"):
            name, _, value = line.partition(b":")
            fields[name] = value.removeprefix(b" ")


def dotnet(stream: bytes) -> Iterator[Any]:
    """.NET's `System.Net.ServerSentEvents.SseParser`: an empty line dispatches if there was a data line; strict UTF-8."""
    data: list[str] = []
    for ended in stream.decode().split("\n"):
        line = ended.removesuffix("\r")
        if not line:
            if data:
                text, data = "\n".join(data), []
                if text == "[DONE]":
                    return
                yield json.loads(text)
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))


DECODERS: dict[str, Callable[[bytes], Iterator[Any]]] = {"go": go_before_3_43, "java": java, "dotnet": dotnet}
