"""Forms put together at random from what clients, proxies and attackers write, read by ours and by parsers of others.

Whatever ours lets through, no other may see a model that ours did not.
"""

import asyncio
import email
import email.policy
import logging
import random
from collections.abc import AsyncGenerator

import pytest
from aiohttp import BodyPartReader, MultipartReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from multidict import CIMultiDict
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from router.facts import BadBody
from router.form import read_multipart

ENDS = [b"\n", b"\r", b"\r\n ", b"\r\n\t", b" \r\n", b"\x00\r\n"]
NAMES = [b"MODEL", b" model", b"mod%65l", b"mo\\del", b"model;x", b"x;name=model", b"model\\", b""]
FORMS = [
    b"NAME=%b",
    b'name = "%b"',
    b"name*=utf-8''%b",
    b'filename="%b"',
    b'x="%b"',
    b"name='%b'",
    b'name="%b"; name="model"',
]
KINDS = [b"Form-Data", b"attachment", b"form-data,", b""]
FIELDS = [b"content-disposition", b"Content-Disposition ", b"X-A", b" Content-Disposition"]
EXTRA = [
    b"Content-Type: text/plain; charset=utf-16",
    b"Content-Transfer-Encoding: base64",
    b'Content-Disposition: form-data; name="model"',
    b'X-A: y\nContent-Disposition: form-data; name="model"',
]
TYPES = [
    b'multipart/form-data; boundary="b"',
    b"multipart/form-data; boundary=b; boundary=c",
    b"multipart/form-data; boundary=b; charset=utf-7",
    b"multipart/form-data; boundary=bb",
    b"multipart/form-data; boundary= b ;",
]
MARKS = [b"--b ", b"--bb", b"-b", b"--b--"]
LAST = [b"--b--", b"--b\r\n", b"", b"--b--\r\n--b\r\n"]


def a_form(rng: random.Random) -> tuple[bytes, bytes]:
    """A content type and a body, nearly all of it as it should be."""

    def one(usual: list[bytes], odd: list[bytes]) -> bytes:
        return rng.choice(odd if rng.random() < 0.04 else usual)

    def end() -> bytes:
        return one([b"\r\n"], ENDS)

    body = one([b""], [b"\r\n", b"x\r\n", b"{}"])
    for number in range(rng.randint(1, 3)):
        name = one([b"model", b"file", b"temperature"], NAMES)
        parameters = [one([b'name="%b"', b"name=%b"], FORMS) % name]
        if rng.random() < 0.3:
            parameters.append(one([b'x="%b"', b'filename="%b"'], FORMS) % one([b"a.wav"], NAMES))
        rng.shuffle(parameters)
        body += one([b"--b"], MARKS) + end() + one([b"Content-Disposition"], FIELDS) + b": "
        body += one([b"; ", b";"], [b";" + ending + b" " for ending in ENDS]).join(
            [one([b"form-data"], KINDS), *parameters]
        )
        extra = one([b"", b"Content-Type: text/plain"], EXTRA)
        body += end() + (extra + end() if extra else b"") + end() + rng.choice([b"small", b"large%d" % number]) + end()
    return one([b"multipart/form-data; boundary=b"], TYPES), body + one([b"--b--\r\n"], LAST)


async def by_starlette(content_type: bytes, body: bytes) -> set[str]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(Headers({"content-type": content_type.decode()}), stream()).parse()
    except MultiPartException:
        return set()
    await form.close()
    return {value for value in form.getlist("model") if isinstance(value, str)}


def by_email(content_type: bytes, body: bytes) -> set[str]:
    """As Python's own `cgi` read forms, and what is made after it."""
    message = email.message_from_bytes(
        b"Content-Type: %b\r\n\r\n%b" % (content_type, body), policy=email.policy.compat32
    )
    parts = message.get_payload() if message.is_multipart() else []
    found = set()
    for part in parts:
        assert isinstance(part, email.message.Message)
        name = part.get_param("name", header="content-disposition")
        name = name[2] if isinstance(name, tuple) else name
        if name == "model" and part.get_filename() is None:
            found.add(str(part.get_payload()).strip("\r\n"))
    return found


async def by_aiohttp(content_type: bytes, body: bytes) -> set[str]:
    stream = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**20, loop=asyncio.get_running_loop())
    stream.feed_data(body)
    stream.feed_eof()
    found = set()
    try:
        reader = MultipartReader(CIMultiDict({"Content-Type": content_type.decode()}), stream)
        while (part := await reader.next()) is not None:
            assert isinstance(part, BodyPartReader)
            if part.name == "model" and part.filename is None:
                found.add((await part.read()).decode("latin-1"))
    except Exception:  # noqa: BLE001 - what it cannot read it does not see
        return found
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_no_reader_sees_a_model_that_ours_did_not_W1(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "python_multipart")
    rng = random.Random(seed)
    taken = 0
    for _ in range(1000):
        content_type, body = a_form(rng)
        try:
            model = read_multipart(content_type, body, forwarded=None).model
        except BadBody:
            continue
        taken += 1
        seen = (
            await by_starlette(content_type, body),
            by_email(content_type, body),
            await by_aiohttp(content_type, body),
        )
        for found in seen:
            assert found <= {model}, (content_type, body, model, seen)
    assert taken > 200  # else nothing was compared
