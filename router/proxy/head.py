"""A request's and a response's head, as the data plane has them: compiled classes, made by `parsing.py`."""

from typing import Final

from router.proxy.paths import Operation, dialect_of

HEAD_LIMIT_BYTES: Final = 32768
BODILESS = frozenset({204, 304})
Fields = list[tuple[bytes, bytes]]
_NO_FIELDS: frozenset[bytes] = frozenset()
_NO_NAMES: frozenset[str] = frozenset()


class BadHead(ValueError):
    """A head that must not be acted on; `status` is what to answer, in the dialect of `path`."""

    def __init__(self, message: str, status: int = 400, path: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.path = path


class RequestHead:
    """A request's head, shared by all requests whose heads are alike: never changed after it was parsed.

    `fields` are (lower-case name, value); `length` is None for a chunked body; `forwarded` are the lines that go on to
    replicas.
    """

    length: int | None = 0
    content_length: bytes | None = None
    transfer_encoding: bytes | None = None
    host: bytes | None = None
    expects_continue: bool = False
    content_type: bytes | None = None
    is_multipart: bool = False
    is_streamed: bool = False
    """Its body is only the beginning of the whole, whose rest is still on its way."""
    is_urlencoded: bool = False
    user_agent: bytes | None = None
    forwarded_for: bytes | None = None
    request_id: bytes | None = None
    authorization: bytes | None = None
    api_key: bytes | None = None
    websocket: bytes | None = None
    """What `Upgrade` says, on a path that takes a WebSocket; None on every other."""
    forwarded: bytes = b""
    cors: bytes = b""
    """Lines for the answer, so that a page may read it."""
    preflight: bytes | None = None
    """The lines that answer it, where it is a browser's question before a request."""
    forwarded_for_stream: bytes = b""
    """The same for a request whose answer the router may write into: no coding is asked for."""
    takes_events: bool = True

    def __init__(
        self,
        method: bytes,
        path: bytes,
        query: bytes,
        *,
        http10: bool,
        keep_alive: bool,
        operation: Operation | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.http10 = http10
        self.keep_alive = keep_alive
        self.operation = operation
        self.dialect = dialect_of(path)
        self.fields: Fields = []
        self.query_models: frozenset[str] = _NO_NAMES
        """Every value that the query gives `model`."""
        self.deadlines: Fields = []
        """What the client says of the time that it has, as it came."""
        self.hop_by_hop: frozenset[bytes] = _NO_FIELDS
        """Fields that `Connection` names; the ones we act on cannot be removed that way."""

    def copied(self) -> "RequestHead":
        """Another one, which may be changed. By hand: what is compiled cannot be copied otherwise, and this is ten times sooner."""
        head = RequestHead(
            self.method,
            self.path,
            self.query,
            http10=self.http10,
            keep_alive=self.keep_alive,
            operation=self.operation,
        )
        head.length = self.length
        head.dialect = self.dialect
        head.content_length = self.content_length
        head.transfer_encoding = self.transfer_encoding
        head.host = self.host
        head.expects_continue = self.expects_continue
        head.content_type = self.content_type
        head.is_multipart = self.is_multipart
        head.is_streamed = self.is_streamed
        head.is_urlencoded = self.is_urlencoded
        head.user_agent = self.user_agent
        head.forwarded_for = self.forwarded_for
        head.request_id = self.request_id
        head.authorization = self.authorization
        head.api_key = self.api_key
        head.websocket = self.websocket
        head.forwarded = self.forwarded
        head.cors = self.cors
        head.preflight = self.preflight
        head.forwarded_for_stream = self.forwarded_for_stream
        head.takes_events = self.takes_events
        head.fields = self.fields
        head.query_models = self.query_models
        head.deadlines = self.deadlines
        head.hop_by_hop = self.hop_by_hop
        return head


class ResponseHead:
    """A response's head, shared like a request's. `lines` are its status line and the fields that go back.

    `length` is None without Content-Length; not chunked and None means: until it closes.
    """

    length: int | None = None
    chunked: bool = False
    is_event_stream: bool = False
    is_json: bool = False
    coded: bool = False
    """Compressed, say: its bytes are nobody's to read or to add to on the way."""
    request_id: bytes | None = None
    """The replica's own; never passed on, the router's is."""

    def __init__(
        self, status: int, reason_line: bytes, fields: Fields, *, http10: bool, keep_alive: bool, lines: bytes = b""
    ) -> None:
        self.status = status
        self.reason_line = reason_line
        self.fields = fields
        self.http10 = http10
        self.keep_alive = keep_alive
        self.lines = lines
        self.hop_by_hop: frozenset[bytes] = _NO_FIELDS

    def copied(self) -> "ResponseHead":
        """Another one, which may be changed."""
        head = ResponseHead(
            self.status,
            self.reason_line,
            self.fields,
            http10=self.http10,
            keep_alive=self.keep_alive,
            lines=self.lines,
        )
        head.length = self.length
        head.chunked = self.chunked
        head.is_event_stream = self.is_event_stream
        head.is_json = self.is_json
        head.coded = self.coded
        head.request_id = self.request_id
        head.hop_by_hop = self.hop_by_hop
        return head
