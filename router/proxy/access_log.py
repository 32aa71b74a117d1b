"""The access log's line of one request: never a prompt, a key or an answer."""

from router.proxy.attempt import UpstreamAttempt
from router.proxy.sides import ProxiedRequest


def line(
    request: ProxiedRequest, attempt: UpstreamAttempt | None, *, status: int, passed: tuple[int, int], now: float
) -> dict[str, object]:
    """Its fields; `attempt` is the last one, if any was made; `passed`: bytes to the replica, bytes to the client."""
    first_byte_at = attempt.first_byte_at if attempt is not None else 0.0
    return {
        "request_id": request.request_id.decode(),
        **({"trace_id": f"{request.trace.trace_id:032x}"} if request.trace is not None else {}),
        "caller": request.caller,
        **({"key": request.key} if request.key else {}),
        "path": request.head.path.decode(),
        "model": request.facts.model,
        "replica": attempt.endpoint.name if attempt is not None else None,
        "status": status,
        **({"translated": True} if request.translation is not None and request.translation.active else {}),
        "attempts": request.dispatch.attempts,
        **({"queued_ms": round(request.queued_s * 1e3, 3)} if request.queued_s else {}),
        "first_byte_ms": round((first_byte_at - request.started) * 1e3, 3) if first_byte_at else None,
        "duration_ms": round((now - request.started) * 1e3, 3),
        "request_bytes": passed[0],
        "response_bytes": passed[1],
        **(attempt.story() if attempt is not None else {}),
        **request.more_told(),
    }
