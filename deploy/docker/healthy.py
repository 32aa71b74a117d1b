"""Exit code 0 when the container is well: `healthy.py PORT`, for HEALTHCHECK.

The router at PORT answers `/health` with 200; where LAUNCH_COMPONENTS (or LAUNCH_ROUTER) leaves the router out, the
registry and every babysitter that was launched here do.
"""

import http.client
import os
import ssl
import sys
from pathlib import Path

LOGS = Path(__file__).resolve().parents[2] / "logs"


def asked(router_port: int) -> list[int]:
    """The ports that must answer."""
    words = os.environ.get("LAUNCH_COMPONENTS", "all").lower().replace(",", " ").split()
    if {"all", "router"} & set(words) and os.environ.get("LAUNCH_ROUTER", "true").lower() not in (
        "false",
        "0",
        "no",
        "off",
    ):
        return [router_port]
    registry = [int(os.environ.get("REGISTRY_PORT", "18000"))] if (LOGS / "registry.pid").exists() else []
    return registry + [int(file.stem.partition("_")[2]) + 1 for file in LOGS.glob("babysitter_*.pid")]


def answers(port: int) -> bool:
    """`/health` at `port` is 200; by https where the variables of all services say so."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    if cert := os.environ.get("SVC_TLS_CERT_FILE"):
        context = ssl.create_default_context(cafile=os.environ.get("SVC_TLS_CA_FILE") or None)
        context.load_cert_chain(cert, os.environ.get("SVC_TLS_KEY_FILE"))
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=3, context=context)
    connection.request("GET", "/health")
    return connection.getresponse().status == http.client.OK


sys.exit(not all(answers(port) for port in asked(int(sys.argv[1]))))
