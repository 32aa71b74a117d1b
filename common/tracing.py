"""Sends spans to an OpenTelemetry collector. An optional extra: nothing of it is imported until it is switched on.

Spans come finished (`common.span`), so the SDK's tracers, contexts and propagators are not used: its batching processor and
its exporter are.
"""

from typing import TYPE_CHECKING

from common import __version__
from common.exits import ConfigurationError
from common.service import ServiceSettings
from common.settings import option
from common.span import Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

EXPORT_TIMEOUT_S = 2.0
"""Also bounds how long a process that ends waits for a collector that does not answer."""
_NS = 1_000_000_000


class TracedSettings(ServiceSettings):
    """What every service that makes spans takes."""

    trace_endpoint: str | None = option(
        None,
        "OpenTelemetry collector (OTLP over HTTP) that gets spans, like http://localhost:4318; unset: no tracing.",
        pattern=r"^https?://\S+$",
        restart=True,
    )
    trace_sample: float = option(
        1.0, "Share of the traces begun here that are kept; a caller decides its own.", ge=0, le=1, restart=True
    )


class Tracing:
    """Takes finished spans.

    Args:
        processor: Where they go.
        service: Name of this process in the traces.
        attributes: Further members of the traces' resource.
    """

    def __init__(self, processor: "SpanProcessor", service: str, **attributes: str) -> None:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an optional extra
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415 - an optional extra

        self._processor = processor
        named = {"service.name": f"inference-svc-{service}", "service.version": __version__}
        self._resource = Resource({**named, **attributes})
        self._scope = InstrumentationScope("inference-svc", __version__)

    def send(self, span: Span) -> None:
        """Hand `span` on; never waits."""
        from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415 - an optional extra
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags  # noqa: PLC0415 - as above

        def place(span_id: int) -> SpanContext:
            return SpanContext(span.trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=place(span.span_id),
                parent=None if span.parent_id is None else place(span.parent_id),
                resource=self._resource,
                attributes=dict(span.attributes),
                kind=SpanKind[span.kind.upper()],
                status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
                start_time=int(span.began_at * _NS),
                end_time=int(span.ended_at * _NS),
                instrumentation_scope=self._scope,
            )
        )

    def close(self) -> None:
        """Send what is left; blocks for at most a few seconds."""
        self._processor.shutdown()


def open_tracing(settings: TracedSettings, service: str, **attributes: str) -> Tracing | None:
    """Tracing as the settings want it; None while it is off.

    Raises:
        ConfigurationError: It is on, and the extra is not installed.
    """
    if settings.trace_endpoint is None:
        return None
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - `require` was asked before

    return Tracing(BatchSpanProcessor(_exporter(settings.trace_endpoint)), service, **attributes)


def require_tracing(settings: TracedSettings) -> None:
    """See that the extra is there before anything is started.

    Raises:
        ConfigurationError: It is wanted, and not installed.
    """
    if settings.trace_endpoint is not None:
        _exporter(settings.trace_endpoint).shutdown()


def _exporter(endpoint: str) -> "SpanExporter":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ConfigurationError(
            f"trace_endpoint is set, but OpenTelemetry is not installed ({error}); "
            "run: pip install 'inference-svc[tracing]'"
        ) from error
    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S)
