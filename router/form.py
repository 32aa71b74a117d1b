"""PURE. The model that a form names (multipart/form-data, RFC 7578), read by the parser that FastAPI's servers use.

What a key allows is decided by our reading, what runs by the server's. So a form passes only where every reading of it
agrees: what another parser may take for a part, a name or a boundary, and ours does not, is refused and never skipped.
"""

import re
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from router.facts import BadBody, checked_model
from router.model import Facts

PARTS_LIMIT = 1000
"""As in Starlette; a form of more would also keep the worker busy for seconds."""
_OPTIONS = re.compile(
    rb"[A-Za-z0-9/+.-]+"
    rb"(?:[ \t]*+;[ \t]*+[A-Za-z0-9_*-]+[ \t]*+=[ \t]*+"
    rb'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*+"|[^\x00-\x20";\\\x7f]*+))*+'
    rb"[ \t]*+;?[ \t]*"
)
"""A field with parameters (RFC 2045 5.1, RFC 2183 2) as every parser takes it apart. Possessive: blanks behind an empty value
have two places in it, and a field of many such would be tried in every combination."""
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,255}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046 5.1.1; longer than its 70, as clients write it."""
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ONE_CHARSET = frozenset({b"utf-8", b"us-ascii"})
_AS_THEY_ARE = frozenset({b"7bit", b"8bit", b"binary"})
_NAMES_LIMITED = (b"name", b"boundary", b"charset")
_NOT_PLAIN = re.compile(rb'[\\";]')


class _Parts:
    """The parser's callbacks: counts parts, judges their fields, keeps where the value of `model` stands."""

    def __init__(self, body: bytes) -> None:
        self.count = 0
        self.ended = False
        self.model: tuple[int, int] | None = None
        self.length: tuple[int, int] | None = None
        """Of the model's own Content-Length, which some clients write."""
        self._body = body
        self._in_model = False
        self._name = b""
        self._value = (0, 0)
        self._fields: dict[bytes, tuple[int, int]] = {}

    def part_begins(self) -> None:
        self.count += 1
        self._in_model = False
        self._fields = {}

    def field_name(self, data: bytes, start: int, end: int) -> None:
        self._name, self._value = data[start:end].lower(), (end, end)

    def field_value(self, _data: bytes, start: int, end: int) -> None:
        self._value = (start, end)

    def field_ends(self) -> None:
        if _CONTROL.search(self._body, *self._value):
            raise BadBody("a control character in a part's header")
        if self._name in self._fields:
            raise BadBody(f"a part has {self._name.decode()} twice")
        self._fields[self._name] = self._value

    def fields_end(self) -> None:
        disposition = self._field(b"content-disposition")
        kind, options = _options(disposition, "Content-Disposition")
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise BadBody("a part has no Content-Disposition 'form-data' with a name")
        if name != b"model":
            if _NOT_PLAIN.search(name) or unquote_to_bytes(name).strip().lower() == b"model":
                raise BadBody("a part's name must be plain: 'model' and nothing like it")
            return
        if self.model is not None:
            raise BadBody("'model' appears twice in the form")
        if any(option.startswith(b"filename") for option in options) or b"filename*" in disposition.lower():
            raise BadBody("the part 'model' must be text, not a file")
        if self._field(b"content-transfer-encoding", b"8bit").lower() not in _AS_THEY_ARE:
            raise BadBody("the part 'model' must not be encoded")
        _check_charset(_options(self._field(b"content-type", b"text/plain"), "Content-Type")[1])
        self._in_model = True
        self.model = (0, 0)
        self.length = self._fields.get(b"content-length")

    def data(self, _data: bytes, start: int, end: int) -> None:
        if self._in_model:
            self.model = (start, end)

    def ends(self) -> None:
        self.ended = True

    def _field(self, name: bytes, default: bytes = b"") -> bytes:
        start, end = self._fields.get(name, (0, 0))
        return self._body[start:end].strip(b" \t") or default


def read_multipart(content_type: bytes, body: bytes, *, forwarded: str | None) -> Facts:
    """Facts of a form upload (audio, images): its part `model`, if there is one.

    Raises:
        BadBody: It cannot be read, could be read otherwise, or `model` is not 1 to 256 printable characters.
    """
    span = _parse(content_type, body).model
    if span is None:
        return Facts(model=None, affinity=forwarded)
    try:
        model = body[slice(*span)].decode()
    except UnicodeDecodeError as error:
        raise BadBody("'model' must be UTF-8") from error
    return Facts(model=checked_model(model), affinity=forwarded)


def with_part(content_type: bytes, body: bytes, model: str) -> bytes:
    """The form with another value in its part `model`; every other byte stays, but the length of that part.

    Raises:
        BadBody: It cannot be read, or has no such part.
    """
    parts = _parse(content_type, body)
    if parts.model is None:
        raise BadBody("the form has no 'model'")
    value = model.encode()
    start, end = parts.model
    head = body[:start]
    if parts.length is not None:
        head = b"%b%d%b" % (body[: parts.length[0]], len(value), body[parts.length[1] : start])
    return b"%b%b%b" % (head, value, body[end:])


def _parse(content_type: bytes, body: bytes) -> _Parts:
    kind, options = _options(content_type, "Content-Type")
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
        raise BadBody("Content-Type must be multipart/form-data with a boundary")
    _check_charset(options)
    delimiter = b"--" + boundary
    if not body.startswith((delimiter, b"\r\n" + delimiter)):
        raise BadBody("the form must begin with its boundary")
    delimiters = body.count(delimiter)
    if delimiters > PARTS_LIMIT + 1:
        raise BadBody(f"the form has more than {PARTS_LIMIT} parts")
    parts = _Parts(body)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": parts.part_begins,
            "on_header_field": parts.field_name,
            "on_header_value": parts.field_value,
            "on_header_end": parts.field_ends,
            "on_headers_finished": parts.fields_end,
            "on_part_data": parts.data,
            "on_end": parts.ends,
        },
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise BadBody(f"the form cannot be read: {error}") from error
    if not parts.ended:
        raise BadBody("the form has no end")
    if delimiters != parts.count + 1:
        raise BadBody("the boundary stands where no part begins")  # one who takes LF for a line's end sees a part there
    return parts


def _options(value: bytes, field: str) -> tuple[bytes, dict[bytes, bytes]]:
    """What a header field says, and its parameters; those that matter here must be there once, in whatever reading."""
    if not _OPTIONS.fullmatch(value):
        raise BadBody(f"{field} cannot be read")
    # Some servers split at every semicolon, one in a quoted file name too: what they take for a name is looked at.
    names = [piece.partition(b"=")[0].strip().lower() for piece in value.split(b";")[1:]]
    for name in _NAMES_LIMITED:
        if names.count(name) > 1 or any(other.startswith(name + b"*") for other in names):
            raise BadBody(f"{field} has {name.decode()!r} in two forms")
    return parse_options_header(value)


def _check_charset(options: dict[bytes, bytes]) -> None:
    if options.get(b"charset", b"utf-8").lower() not in _ONE_CHARSET:
        raise BadBody("a form must be UTF-8")
