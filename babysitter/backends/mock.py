"""PURE: the suite's own mock server."""

from collections.abc import Mapping, Sequence

from babysitter.backends.plan import LaunchContext, LaunchPlan


def plan(service: LaunchContext, *, models: Sequence[str], args: Sequence[str], env: Mapping[str, str]) -> LaunchPlan:
    """`python -m babysitter.mock` under the suite's own interpreter, whatever the working directory."""
    named = [word for model in models for word in ("--model", model)]
    fixed = ("--host", service.host, "--port", str(service.port), "--name", service.name)
    path = {"PYTHONPATH": service.project, "PYTHONUNBUFFERED": "1"}
    argv = (service.python, "-P", "-m", "babysitter.mock", *fixed, *named, *args)
    return LaunchPlan(argv=argv, env={**path, **env}, expected_models=tuple(models))
