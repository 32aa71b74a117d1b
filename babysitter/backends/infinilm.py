"""PURE: InfiniLM's two servers, the Python launch script and the Rust `xtask`."""

from collections.abc import Mapping, Sequence

from babysitter.backends.plan import Plan, Service


def plan_python(
    service: Service,
    *,
    launch_script: str,
    model_path: str,
    args: Sequence[str],
    env: Mapping[str, str],
    work_dir: str | None,
) -> Plan:
    """`python3 launch_server.py --model-path … --port P --host H args…` (CONTRACT.md 3)."""
    fixed = ("--model-path", model_path, "--port", str(service.port), "--host", service.host)
    return Plan(argv=("python3", launch_script, *fixed, *args), env=env, work_dir=work_dir)


def plan_rust(service: Service, *, config_file: str, env: Mapping[str, str], work_dir: str | None) -> Plan:
    """`xtask service CONFIG -p P` (CONTRACT.md 3)."""
    return Plan(argv=("xtask", "service", config_file, "-p", str(service.port)), env=env, work_dir=work_dir)
