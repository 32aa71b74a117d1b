"""What the router reads of a WebSocket: the handshake's two sides and where frames end, against the library `websockets`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.headers import build_extension, build_subprotocol
from websockets.typing import ExtensionName, Subprotocol
from websockets.utils import accept_key, generate_key

from router.proxy.head import BadHead
from router.proxy.parsing import parse_request, parse_response
from router.proxy.websocket import BadHandshake, Frames, close_frame, is_accepted, read_handshake

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
GOOD = {
    "Host": "r",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}


def raw(line: str = "GET /v1/realtime?model=m HTTP/1.1", /, **changes: str | None) -> bytes:
    """A handshake; `changes` by name with `_` for `-`, None takes a field out."""
    fields = dict(GOOD)
    for name, value in changes.items():
        fields.pop(next((one for one in fields if one.lower() == name.replace("_", "-").lower()), ""), None)
        if value is not None:
            fields[name.replace("_", "-")] = value
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in fields.items()), "", ""]).encode()


def test_a_handshake_as_the_library_writes_it_is_read() -> None:
    protocols = build_subprotocol([Subprotocol("realtime"), Subprotocol("openai-insecure-api-key.sk-1")])
    extensions = build_extension([(ExtensionName("permessage-deflate"), [("client_max_window_bits", None)])])
    fields = {"Sec_WebSocket_Protocol": protocols, "Sec_WebSocket_Extensions": extensions, "upgrade": "WebSocket"}
    key = generate_key()
    handshake = read_handshake(parse_request(raw(**fields, Sec_WebSocket_Key=key, connection="keep-alive, Upgrade")))
    assert handshake.key == key.encode()
    assert handshake.protocols == (b"realtime", b"openai-insecure-api-key.sk-1")
    assert handshake.shown_key == b"sk-1"
    assert handshake.without_key == (b"realtime",)
    lines = handshake.lines(handshake.without_key).decode().split("\r\n")
    assert {
        f"sec-websocket-key: {key}",
        "sec-websocket-protocol: realtime",
        f"sec-websocket-extensions: {extensions}",
        "upgrade: websocket",
        "connection: Upgrade",
    } <= set(lines)


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (405, raw("POST /v1/realtime HTTP/1.1")),
        (405, raw("OPTIONS /v1/realtime HTTP/1.1")),
        (426, raw("GET /v1/realtime HTTP/1.0")),
        (426, raw(Upgrade=None)),
        (426, raw(Upgrade="h2c")),
        (426, raw(Upgrade="websocket, h2c")),
        (426, raw(Upgrade="websocket\r\nUpgrade: h2c")),
        (426, raw(Connection=None)),
        (426, raw(Connection="keep-alive")),
        (426, raw(Connection="upgraded")),
        (426, raw(Sec_WebSocket_Version=None)),
        (426, raw(Sec_WebSocket_Version="8")),
        (426, raw(Sec_WebSocket_Version="13, 8")),
        (426, raw(Sec_WebSocket_Version="13\r\nSec-WebSocket-Version: 8")),
        (400, raw(Sec_WebSocket_Key=None)),
        (400, raw(Sec_WebSocket_Key="short")),
        (400, raw(Sec_WebSocket_Key="!" * 24)),
        (400, raw(Sec_WebSocket_Key=f"{KEY}\r\nSec-WebSocket-Key: {KEY}")),
        (400, raw(Sec_WebSocket_Protocol="a,,b")),
        (400, raw(Sec_WebSocket_Protocol="a b")),
        (400, raw(Content_Length="5")),
        (400, raw(Transfer_Encoding="chunked")),
    ],
)
def test_what_is_no_handshake_is_refused_R83(status: int, request_: bytes) -> None:
    with pytest.raises(BadHandshake) as refused:
        read_handshake(parse_request(request_))
    assert refused.value.status == status


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/realtime/", "/v1/realtimes", "/ws"])
def test_an_upgrade_elsewhere_is_ignored_R69(path: str) -> None:
    head = parse_request(raw(f"GET {path} HTTP/1.1"))
    assert (head.websocket is not None) == (path == "/v1/realtime/")  # a slash too many is forgiven
    assert b"upgrade" not in [name for name, _ in head.fields]


def answer(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode()


UP, PROOF = ("Upgrade: websocket", "Connection: upgrade"), f"Sec-WebSocket-Accept: {accept_key(KEY)}"


@pytest.mark.parametrize(
    ("accepted", "lines"),
    [
        (True, (*UP, PROOF)),
        (True, (*UP, PROOF, "Sec-WebSocket-Protocol: a")),
        (False, UP),
        (False, (*UP, f"Sec-WebSocket-Accept: {accept_key(generate_key())}")),
        (False, (*UP, PROOF, PROOF)),
        (False, (UP[0], PROOF)),
        (False, (UP[1], PROOF)),
        (False, ("Upgrade: h2c", UP[1], PROOF)),
        (False, (*UP, PROOF, "Sec-WebSocket-Protocol: foreign")),
        (False, (*UP, PROOF, "Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: b")),
    ],
)
def test_only_a_101_with_the_right_proof_opens_a_tunnel_U26(*, accepted: bool, lines: tuple[str, ...]) -> None:
    try:
        head = parse_response(answer(*lines))
    except BadHead:
        assert not accepted  # half an upgrade is none to the parser
    else:
        assert is_accepted(head, KEY.encode(), (b"a", b"b")) is accepted


FRAMES = st.lists(
    st.tuples(
        st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING, Opcode.PONG, Opcode.CLOSE]),
        st.sampled_from([0, 1, 2, 125]) | st.integers(0, 125),
        st.sampled_from([0, 1, 60_000, 70_000]),
        st.booleans(),
    ),
    max_size=5,
)


@given(FRAMES, st.data())
def test_the_ends_of_frames_are_found_however_they_are_cut(
    frames: list[tuple[Opcode, int, int, bool]], data: st.DataObject
) -> None:
    raw_frames, closes = [], False
    for opcode, small, more, mask in frames:
        size = small if opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE) else small + more
        raw_frames.append(Frame(opcode, b"\x88" * size).serialize(mask=mask))
        closes = closes or opcode is Opcode.CLOSE
    whole = b"".join(raw_frames)
    ends = {sum(map(len, raw_frames[: number + 1])) for number in range(len(raw_frames))}
    cuts = sorted({*data.draw(st.lists(st.integers(0, len(whole)), max_size=12)), len(whole)})
    follower, before = Frames(), 0
    for cut in cuts:
        ended = follower.feed(whole[before:cut])
        inside = [end for end in ends if before < end <= cut]
        assert ended == (max(inside) - before if inside else -1)
        assert follower.between == (cut in ends | {0})
        before = cut
    assert follower.closed is closes


def test_a_close_of_ours_is_one_to_the_library() -> None:
    frame = close_frame(1012, "connect again")
    assert frame == Frame(Opcode.CLOSE, Close(1012, "connect again").serialize()).serialize(mask=False)
    assert len(close_frame(1012, "x" * 500)) == 2 + 125
