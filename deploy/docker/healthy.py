"""Exit code 0 when `http://127.0.0.1:PORT/health` answers 200: `healthy.py PORT`, for HEALTHCHECK."""

import http.client
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=3)
connection.request("GET", "/health")
sys.exit(connection.getresponse().status != http.client.OK)
