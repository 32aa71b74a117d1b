"""What a scrape shows of a process's certificate."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric


def tls_families(expires_at: float | None) -> Iterator[Metric]:
    """When the certificate ends, in epoch seconds; no sample where there is none."""
    family = GaugeMetricFamily(
        "svc_tls_certificate_expires_timestamp_seconds",
        "When the certificate that is shown to clients ends, in seconds since 1970.",
    )
    if expires_at is not None:
        family.add_metric([], expires_at)
    yield family
