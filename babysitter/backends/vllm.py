"""PURE: vLLM's OpenAI server."""

from collections.abc import Mapping, Sequence

from babysitter.backends.plan import LaunchContext, LaunchPlan, option_value


def plan(
    service: LaunchContext, *, model: str, args: Sequence[str], env: Mapping[str, str], work_dir: str | None
) -> LaunchPlan:
    """`python3 -m vllm.entrypoints.openai.api_server --model M --port P --host H args…` (docs/contract.md 3)."""
    fixed = ("--model", model, "--port", str(service.port), "--host", service.host)
    served = option_value(args, "--served-model-name") or model
    argv = ("python3", "-m", "vllm.entrypoints.openai.api_server", *fixed, *args)
    return LaunchPlan(argv=argv, env=env, work_dir=work_dir, expected_models=(served,))
