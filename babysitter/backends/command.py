"""PURE: any program that serves the OpenAI API, as given."""

from collections.abc import Mapping, Sequence

from babysitter.backends.plan import LaunchPlan, words


def plan(*, command: str, args: Sequence[str], env: Mapping[str, str], work_dir: str | None) -> LaunchPlan:
    """`command` (which may hold several words) and `args`."""
    return LaunchPlan(argv=(*words(command), *args), env=env, work_dir=work_dir)
