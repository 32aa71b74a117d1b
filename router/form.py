"""PURE. The model that a form names (multipart/form-data, RFC 7578), read by the parser that FastAPI's servers use.

What a key allows is decided by our reading, what runs by the server's. So a form passes only where every reading of it
agrees: what another parser may take for a part, a name or a boundary, and ours does not, is refused and never skipped.
"""

import re
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from router.facts import MODEL_LIMIT, BadBody, checked_model
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


class FormReader:
    """Reads a form, whole or piece by piece, and judges what it has read.

    Args:
        content_type: What the request's head says of it.

    Raises:
        BadBody: By each call: it cannot be read, or could be read otherwise.
    """

    def __init__(self, content_type: bytes) -> None:
        kind, options = _options(content_type, "Content-Type")
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
            raise BadBody("Content-Type must be multipart/form-data with a boundary")
        _check_charset(options)
        self._delimiter = b"--" + boundary
        self._delimiters = 0
        self._parts = _Parts()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._parts.part_begins,
                "on_header_begin": self._parts.field_begins,
                "on_header_field": self._parts.field_name,
                "on_header_value": self._parts.field_value,
                "on_header_end": self._parts.field_ends,
                "on_headers_finished": self._parts.fields_end,
                "on_part_data": self._parts.data,
                "on_end": self._parts.ends,
            },
        )
        self._last = b""
        """Where a delimiter may have begun."""

    @property
    def model(self) -> bytes | None:
        """The value of the part `model`; None while it has not come to its end."""
        parts = self._parts
        return None if parts.model is None or (parts.in_model and not parts.ended) else bytes(parts.value)

    @property
    def span(self) -> tuple[int, int] | None:
        """Where that value stands in the form."""
        return self._parts.model

    @property
    def length_span(self) -> tuple[int, int] | None:
        """Where the Content-Length of that part stands, which some clients write."""
        return self._parts.length

    def feed(self, piece: bytes) -> None:
        """Read on; the first piece is longer than a boundary."""
        parts, delimiter = self._parts, self._delimiter
        if not parts.read_bytes and not piece.startswith((delimiter, b"\r\n" + delimiter)):
            raise BadBody("the form must begin with its boundary")
        seen = self._last + piece
        self._delimiters += seen.count(delimiter)
        self._last = seen[len(seen) - len(delimiter) + 1 :] if len(seen) >= len(delimiter) else seen
        if self._delimiters > PARTS_LIMIT + 1:
            raise BadBody(f"the form has more than {PARTS_LIMIT} parts")
        parts.piece = piece
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise BadBody(f"the form cannot be read: {error}") from error
        parts.read_bytes += len(piece)

    def end(self) -> None:
        """Nothing more comes: is it whole?"""
        if not self._parts.ended:
            raise BadBody("the form has no end")
        if self._delimiters != self._parts.count + 1:
            raise BadBody("the boundary stands where no part begins")  # one who takes LF for a line's end sees a part


class _Parts:
    """The parser's callbacks: counts parts, judges their fields, keeps the value of `model` and where it stands."""

    def __init__(self) -> None:
        self.count = 0
        self.ended = False
        self.piece = b""
        self.read_bytes = 0
        """Of the pieces before."""
        self.model: tuple[int, int] | None = None
        self.value = bytearray()
        self.in_model = False
        self.length: tuple[int, int] | None = None
        self._name = b""
        self._said = b""
        self._stands = 0
        self._fields: dict[bytes, tuple[bytes, int]] = {}
        """Of a part: what each says, and where that stands."""

    def part_begins(self) -> None:
        self.count += 1
        self.in_model = False
        self._fields = {}

    def field_begins(self) -> None:
        self._name = self._said = b""

    def field_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end].lower()

    def field_value(self, data: bytes, start: int, end: int) -> None:
        if not self._said:
            self._stands = self.read_bytes + start
        self._said += data[start:end]

    def field_ends(self) -> None:
        if _CONTROL.search(self._said):
            raise BadBody("a control character in a part's header")
        if self._name in self._fields:
            raise BadBody(f"a part has {self._name.decode()} twice")
        self._fields[self._name] = (self._said, self._stands)

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
        self.in_model = True
        self.model = (0, 0)
        said, stands = self._fields.get(b"content-length", (b"", 0))
        self.length = (stands, stands + len(said)) if said else None

    def data(self, data: bytes, start: int, end: int) -> None:
        if not self.in_model:
            return
        if not self.value:
            # What came in the piece before and turned out to be no boundary begins with CR, which no name has.
            first = self.read_bytes + start if data is self.piece else 0
            self.model = (first, first)
        assert self.model is not None  # noqa: S101 - it begins with its fields
        self.value += data[start:end]
        if len(self.value) > MODEL_LIMIT * 4:
            raise BadBody("'model' is too long")
        self.model = (self.model[0], self.model[0] + len(self.value))

    def ends(self) -> None:
        self.ended = True

    def _field(self, name: bytes, default: bytes = b"") -> bytes:
        said, _ = self._fields.get(name, (b"", 0))
        return said.strip(b" \t") or default


def read_multipart(content_type: bytes, body: bytes, *, forwarded: str | None, whole: bool = True) -> Facts:
    """Facts of a form upload (audio, images): its part `model`, if there is one.

    Args:
        content_type: What the request's head says of it.
        body: The form, or its beginning.
        forwarded: Affinity by address and agent.
        whole: False: more of it comes.

    Raises:
        BadBody: It cannot be read, could be read otherwise, or `model` is not 1 to 256 printable characters.
    """
    reader = FormReader(content_type)
    reader.feed(body)
    if whole:
        reader.end()
    if reader.model is None:
        return Facts(model=None, affinity=forwarded)
    try:
        model = reader.model.decode()
    except UnicodeDecodeError as error:
        raise BadBody("'model' must be UTF-8") from error
    return Facts(model=checked_model(model), affinity=forwarded)


def with_part(content_type: bytes, body: bytes, model: str) -> bytes:
    """The form, or its beginning, with another value in its part `model`; every other byte stays, but the length of that part.

    Raises:
        BadBody: It cannot be read, or has no such part.
    """
    reader = FormReader(content_type)
    reader.feed(body)
    if reader.span is None:
        raise BadBody("the form has no 'model'")
    value = model.encode()
    (start, end), length = reader.span, reader.length_span
    head = body[:start]
    if length is not None:
        head = b"%b%d%b" % (body[: length[0]], len(value), body[length[1] : start])
    return b"%b%b%b" % (head, value, body[end:])


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
