"""Forms: what is read, what is refused because another server would read it otherwise, and what a new model changes."""

from collections.abc import AsyncGenerator

import pytest
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from router.facts import BadBody
from router.form import PARTS_LIMIT, read_multipart, with_part
from router.urlencoded import FIELDS_LIMIT, models_in, with_model

TYPE = b"multipart/form-data; boundary=b"


def part(value: bytes = b"small", disposition: bytes = b'form-data; name="model"', *more: bytes) -> bytes:
    lines = b"".join(line + b"\r\n" for line in (b"Content-Disposition: " + disposition, *more))
    return b"--b\r\n%b\r\n%b\r\n" % (lines, value)


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


FILE = part(b"RIFF\r\n-- b\r\n\r\n", b'form-data; name="file"; filename="a.wav"', b"Content-Type: audio/wav")


def model_of(body: bytes, content_type: bytes = TYPE) -> str | None:
    return read_multipart(content_type, body, forwarded=None).model


async def starlette_model(body: bytes, content_type: bytes = TYPE) -> object:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    headers = Headers({"content-type": content_type.decode()})
    read = await MultiPartParser(headers, stream()).parse()
    await read.close()
    return read.get("model")


@pytest.mark.parametrize(
    "written",
    [
        part(),
        part(b"small", b"form-data; name=model"),
        part(b"small", b'form-data; NAME="model"'),
        part(b"small", b'form-data; name="model"; x=y'),
        part(b"small", b'Form-Data ;  name = "model"'),
        part(b"small", b"form-data; name=model", b"Content-Type: text/plain; charset=utf-8"),
        part(b"small", b'form-data; name="model"', b"Content-Length: 5"),
        b'--b\r\nCONTENT-TYPE: text/plain\r\ncontent-disposition: form-data; name="model"\r\n\r\nsmall\r\n',
    ],
)
@pytest.mark.parametrize("around", [(FILE, b""), (b"", FILE)])
async def test_form_model_however_it_is_written_is_read_as_starlette_does_W1(
    written: bytes, around: tuple[bytes, bytes]
) -> None:
    body = form(around[0], written, around[1])
    assert model_of(body) == await starlette_model(body) == "small"


@pytest.mark.parametrize(
    "content_type",
    [
        b'multipart/form-data; boundary="b"',
        b"Multipart/Form-Data;boundary=b; charset=UTF-8",
        b"multipart/form-data; charset=us-ascii; Boundary=b",
    ],
)
def test_form_type_in_any_usual_spelling_is_read_W1(content_type: bytes) -> None:
    assert model_of(form(FILE, part()), content_type) == "small"


def test_form_without_a_model_has_none_W1() -> None:
    assert model_of(form(FILE)) is None
    assert model_of(b"--b--") is None
    assert read_multipart(TYPE, form(FILE), forwarded="addr:x").affinity == "addr:x"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (form(part(), part(b"large")), "twice"),
        (form(part(), part(b"large", b"form-data; name=model")), "twice"),
        (form(part(), part(b"large", b'form-data; name="MODEL"')), "plain"),
        (form(part(), part(b"large", b'form-data; name="mod%65l"')), "plain"),
        (form(part(), part(b"large", b'form-data; name=" model"')), "plain"),
        (form(part(), part(b"large", b'form-data; name="mo\\del"')), "plain"),
        (form(part(), part(b"large", b'form-data; name="model;x"')), "plain"),
        (form(part(), part(b"large", b"form-data; name*=utf-8''model")), "two forms"),
        (form(part(), part(b"large", b'form-data; name="x"; name="model"')), "two forms"),
        (form(part(), part(b"large", b'form-data; name="x"; filename="a;name=model"')), "two forms"),
        (form(part(), part(b"large", b'form-data; name="x"y; name="model"')), "cannot be read"),
        (form(part(), part(b"large", b'form-data;\r\n name="model"')), "cannot be read"),
        (form(part(), part(b"large", b'form-data; name="x"', b"X-A: y\nContent-Disposition: form-data")), "control"),
        (
            form(part(), part(b"large", b'form-data; name="x"', b'Content-Disposition: form-data; name="model"')),
            "twice",
        ),
        (form(part(), part(b"x", b'attachment; name="model"')), "form-data"),
        (form(part(), b"--b\r\n\r\nlarge\r\n"), "Content-Disposition"),
        (form(part(b"small\n--b\nContent-Disposition: form-data; name=model\n\nlarge")), "no part begins"),
        (form(part()) + part(b"large"), "no part begins"),
        (part()[:-2] + b"\r\n--b", "no end"),
        (part(), "no end"),
        (b"x" + form(part()), "begin"),
        (b"", "begin"),
        (form(part(b"small", b'form-data; name="model"; filename="x"')), "text"),
        (form(part(b"small", b"form-data; name=\"model\"; filename*=utf-8''x")), "text"),
        (form(part(b"bGFyZ2U=", b'form-data; name="model"', b"Content-Transfer-Encoding: base64")), "encoded"),
        (form(part(b"s", b'form-data; name="model"', b"Content-Type: text/plain; charset=utf-16")), "UTF-8"),
        (form(part(b"\xff")), "UTF-8"),
        (form(part(b"")), "printable"),
        (form(part(b"a\r\nb")), "printable"),
        (form(part(b"m" * 257)), "printable"),
        (form(*[part(b"x", b"form-data; name=x")] * (PARTS_LIMIT + 1)), "more than"),
    ],
)
def test_form_that_somebody_could_read_otherwise_is_refused_W1(body: bytes, why: str) -> None:
    with pytest.raises(BadBody, match=why):
        model_of(body)


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary="b',
        b"multipart/form-data; boundary=b; boundary=c",
        b"multipart/form-data; boundary=b; boundary*=c",
        b"multipart/form-data; boundary=b; charset=utf-7",
        b"multipart/mixed; boundary=b",
        b"multipart/form-datax; boundary=b",
        b"multipart/form-data, text/plain; boundary=b",
    ],
)
def test_form_type_that_somebody_could_read_otherwise_is_refused_W1(content_type: bytes) -> None:
    with pytest.raises(BadBody):
        model_of(form(part()), content_type)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "body",
    [
        b'name="model"\r\n' * 80_000,
        b"--b" * 400_000,
        b"--b\r\n" + b"A: b\r\n" * 200_000,
        form(part(b"\r\n--" * 300_000, b"form-data; name=x")),
        b"--b\r\nContent-Disposition: form-data; " + b"a=b; " * 800 + b'="\r\n\r\n\r\n--b--',
        b"--b\r\nContent-Disposition: form-data" + b";a= " * 800 + b"\\\r\n\r\n\r\n--b--",
    ],
)
def test_form_made_to_be_slow_is_read_in_one_go_W1(body: bytes) -> None:
    try:
        assert model_of(body) is None
    except BadBody:
        return


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"model=a", {"a"}),
        (b"x=1&mod%65l=a&y", {"a"}),
        (b"model=a&model=b", {"a", "b"}),
        (b"x=1;model=a", {"a"}),
        (b"model=a;x", {"a", "a;x"}),
        (b"MODEL=a&+model+=b", {"a", "b"}),
        (b"models=a&x=model=b", set()),
        (b"model", {""}),
        (b"x=%ff", set()),
        (b"", set()),
    ],
)
def test_urlencoded_models_are_those_of_every_reading_W1(text: bytes, expected: set[str]) -> None:
    assert models_in(text) == expected


def test_urlencoded_with_too_many_fields_is_refused_W1() -> None:
    with pytest.raises(ValueError, match="fields"):
        models_in(b"a=b&" * (FIELDS_LIMIT + 1))


@pytest.mark.parametrize("more", [(), (b"Content-Length: 5", b"Content-Type: text/plain")])
async def test_form_with_another_model_keeps_every_other_byte_W20(more: tuple[bytes, ...]) -> None:
    body = form(FILE, part(b"alias", b"form-data; name=model", *more), part(b"0.2", b'form-data; name="temperature"'))
    changed = with_part(TYPE, body, "a-much-longer-näme")
    value = "a-much-longer-näme".encode()
    expected = body.replace(b"\r\n\r\nalias", b"\r\n\r\n" + value)
    assert changed == expected.replace(b"Content-Length: 5", b"Content-Length: %d" % len(value))
    assert model_of(changed) == await starlette_model(changed) == "a-much-longer-näme"


def test_urlencoded_with_another_model_keeps_the_other_fields_W20() -> None:
    assert with_model(b"a=1&model=alias&b=x+y", "big one") == b"a=1&model=big+one&b=x+y"


@pytest.mark.parametrize("text", [b"a=1;model=alias", b"model=alias&b=1;c", b"a=1&b=2;model=alias"])
def test_urlencoded_with_another_model_names_it_in_every_reading_W20(text: bytes) -> None:
    assert models_in(text) == {"alias"}
    assert models_in(with_model(text, "big")) == {"big"}


def test_form_without_a_model_cannot_get_another_W20() -> None:
    with pytest.raises(BadBody):
        with_part(TYPE, form(FILE), "x")
