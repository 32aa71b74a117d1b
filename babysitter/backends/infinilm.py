"""PURE: InfiniLM's two servers, the Python launch script and the Rust `xtask`."""

from collections.abc import Mapping, Sequence

from babysitter.backends.plan import LaunchContext, LaunchPlan, option_value

ALWAYS = (("--dev", "nvidia"), ("--ndev", "1"), ("--max-batch", "3"), ("--request-timeout", "300"))
"""What the ancestor's babysitter always told the launch script, with its own defaults (docs/contract.md 7)."""


def plan_python(
    service: LaunchContext, *, script: str, model_path: str, args: Sequence[str], env: Mapping[str, str], work_dir: str
) -> LaunchPlan:
    """`python3 SCRIPT --port P --host H --model-path M --dev D --ndev N --max-batch B --request-timeout T args…`."""
    fixed = ("--port", str(service.port), "--host", service.host, "--model-path", model_path)
    missing = [word for flag, default in ALWAYS if option_value(args, flag) is None for word in (flag, default)]
    return LaunchPlan(argv=("python3", script, *fixed, *missing, *args), env=env, work_dir=work_dir)


def plan_rust(service: LaunchContext, *, config_file: str, env: Mapping[str, str], work_dir: str | None) -> LaunchPlan:
    """`xtask service CONFIG -p P` (docs/contract.md 3)."""
    return LaunchPlan(argv=("xtask", "service", config_file, "-p", str(service.port)), env=env, work_dir=work_dir)
