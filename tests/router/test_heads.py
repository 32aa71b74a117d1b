import pytest

from router.proxy.head import BadHead, RequestHead, ResponseHead
from router.proxy.heads import COUNT_LIMIT, Heads, request_heads, response_heads
from router.proxy.parsing import parse_request
from router.proxy.paths import PROXIED

LINES = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: %b\r\nAccept: x\r\n"
    b"Content-Length: %b\r\nUser-Agent: u\r\n\r\n"
)


def test_heads_that_differ_in_length_and_id_share_one_verdict() -> None:
    heads = request_heads({b"accept", b"user-agent"})
    heads.read(LINES % (b"id-0", b"5"))
    first, second = heads.read(LINES % (b"id-1", b"10")), heads.read(LINES % (b"id-2", b"20"))
    assert (first.length, first.request_id, second.length, second.request_id) == (10, b"id-1", 20, b"id-2")
    assert first.forwarded is second.forwarded == b"accept: x\r\nuser-agent: u\r\n"
    assert len(heads._kept) == 1
    again = heads.read(LINES % (b"id-1", b"10"))
    assert (again.length, again.request_id, again.path) == (first.length, first.request_id, first.path)


def test_the_number_and_the_id_that_stand_for_all_others_are_ordinary_ones() -> None:
    heads = request_heads(set())
    for _ in range(2):
        heads.read(LINES % (b"id-1", b"10"))
    stand_in = heads.read(LINES % (b"x", b"0"))
    assert (stand_in.length, stand_in.request_id, len(heads._kept)) == (0, b"x", 1)
    after = heads.read(LINES % (b"id-1", b"10"))
    assert (after.length, after.request_id) == (10, b"id-1")


@pytest.mark.parametrize(
    ("request_id", "length"),
    [
        (b"a", b"1_0"),
        (b"a", b"+5"),
        (b"a", b"9" * 19),
        (b"a", b""),
        (b"", b""),
        (b"a", b"\x00"),
        (b"a\x00b", b"5"),
        (b"a\nTE: b", b"5"),
    ],
)
def test_a_remembered_head_lets_no_bad_one_through(request_id: bytes, length: bytes) -> None:
    heads = request_heads(set())
    for _ in range(2):
        heads.read(LINES % (b"a", b"5"))
    assert len(heads._kept) == 1
    with pytest.raises(BadHead):
        heads.read(LINES % (request_id, length))


def test_a_second_length_is_never_taken_for_the_digits() -> None:
    heads = request_heads(set())
    for _ in range(2):
        heads.read(LINES % (b"a", b"5"))
    assert len(heads._kept) == 1
    for more in (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"X-Length: 7\r\nContent-Length: 9\r\n"):
        raw = (LINES % (b"a", b"5")).replace(b"Accept: x\r\n", more)
        for _ in range(2):
            with pytest.raises(BadHead):
                heads.read(raw)


def test_the_memory_is_bounded() -> None:
    heads = request_heads(set())
    for number in range(COUNT_LIMIT * 2):
        for _ in range(2):
            heads.read(b"GET /x HTTP/1.1\r\nHost: a\r\nX-A: %d\r\n\r\n" % number)
    assert 0 < len(heads._kept) <= COUNT_LIMIT
    for _ in range(2):
        heads.read(b"GET /x HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 4000 + b"\r\n\r\n")
    assert max(len(text) for text in heads._kept) <= 2048


def test_heads_that_never_come_twice_are_not_kept_and_push_out_nobody() -> None:
    parsed: list[bytes] = []

    def parse(raw: bytes) -> RequestHead:
        parsed.append(raw)
        return parse_request(raw)

    heads: Heads[RequestHead] = Heads(parse, RequestHead.copied)
    for _ in range(3):
        heads.read(LINES % (b"a", b"5"))
    assert len(parsed) == 2
    for number in range(COUNT_LIMIT * 20):
        traced = b"Authorization: Bearer secret\r\nTraceparent: 00-%032x-00f067aa0ba902b7-01\r\n" % number
        heads.read((LINES % (b"a", b"5")).replace(b"Accept: x\r\n", traced))
    assert not any(b"secret" in text for text in heads._kept)
    before = len(parsed)
    heads.read(LINES % (b"a", b"5"))
    assert len(parsed) == before
    assert len(heads._seen) <= 8192


def test_responses_share_their_lines() -> None:
    heads = response_heads()
    raw = b"HTTP/1.1 200 OK\r\nserver: x\r\nx-request-id: %b\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n"
    heads.read(raw % (b"c", 5))
    first, second = heads.read(raw % (b"a", 3)), heads.read(raw % (b"b", 4))
    assert (first.length, second.length) == (3, 4)
    assert first.lines is second.lines == b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_an_answer_without_a_body_has_none_whatever_its_length_says(status: bytes) -> None:
    heads = response_heads()
    for length in (0, 100, 100, 7):
        assert heads.read(b"HTTP/1.1 %b\r\nserver: x\r\ncontent-length: %d\r\n\r\n" % (status, length)).length == 0


@pytest.mark.parametrize(
    "head",
    [
        RequestHead(b"GET", b"/v1/messages", b"a=1", http10=True, keep_alive=True, operation=PROXIED[b"/v1/responses"]),
        ResponseHead(404, b"404 x\r\n", [(b"a", b"b")], http10=True, keep_alive=True, lines=b"x"),
    ],
    ids=["request", "response"],
)
def test_a_copy_has_all_that_the_head_has(head: RequestHead | ResponseHead) -> None:
    names = [name for name in dir(head) if not name.startswith("_") and name != "copied"]
    assert {"length", "hop_by_hop", "fields"} <= set(names)
    for name in names:
        value = getattr(head, name)
        if isinstance(value, bool):
            setattr(head, name, not value)
        elif value is None or isinstance(value, bytes):
            setattr(head, name, name.encode() if name != "length" else 7)
    copy = head.copied()
    assert copy is not head
    assert {name: getattr(copy, name) for name in names} == {name: getattr(head, name) for name in names}
