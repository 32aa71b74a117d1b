"""The router: one HTTP port in front of every ready replica. `python -m router` or `svc-router`."""
