"""PURE: the suite's own mock server."""

from collections.abc import Mapping, Sequence

from babysitter.backends.plan import Plan, Service


def plan(service: Service, *, models: Sequence[str], args: Sequence[str], env: Mapping[str, str]) -> Plan:
    """`python -m babysitter.mock` under the suite's own interpreter, whatever the working directory."""
    named = [word for model in models for word in ("--model", model)]
    fixed = ("--host", service.host, "--port", str(service.port), "--name", service.name)
    path = {"PYTHONPATH": service.project, "PYTHONUNBUFFERED": "1"}
    argv = (service.python, "-P", "-m", "babysitter.mock", *fixed, *named, *args)
    return Plan(argv=argv, env={**path, **env}, expected_models=tuple(models))
