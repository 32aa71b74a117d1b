"""PURE: vLLM's OpenAI server."""

from collections.abc import Mapping, Sequence

from babysitter.backends.plan import LaunchContext, LaunchPlan, option_value

SLEEP_ENV = {"VLLM_SERVER_DEV_MODE": "1"}
ADAPTERS_ENV = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


def plan(
    service: LaunchContext,
    *,
    model: str,
    args: Sequence[str],
    env: Mapping[str, str],
    work_dir: str | None,
    adapters: int = 0,
    sleeps: bool = False,
) -> LaunchPlan:
    """`python3 -m vllm.entrypoints.openai.api_server --model M --port P --host H args…` (docs/contract.md 3).

    `adapters`: LoRA adapters that it is to keep loaded at once; 0 leaves its own arguments as they are. `sleeps`: it is to
    have its calls for sleeping.
    """
    fixed: tuple[str, ...] = ("--model", model, "--port", str(service.port), "--host", service.host)
    served = option_value(args, "--served-model-name") or model
    if adapters:
        kept = max(adapters + 1, int(option_value(args, "--max-loras") or 1))  # a new one comes before an old one goes
        fixed = (*fixed, "--enable-lora", "--max-cpu-loras", str(kept))  # what `args` says comes later, and wins
        env = {**ADAPTERS_ENV, **env}
    if sleeps:
        fixed = (*fixed, "--enable-sleep-mode")
        env = {**SLEEP_ENV, **env}
    argv = ("python3", "-m", "vllm.entrypoints.openai.api_server", *fixed, *args)
    return LaunchPlan(argv=argv, env=env, work_dir=work_dir, expected_models=(served,))
