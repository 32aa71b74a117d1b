"""What the agent's settings, a template and a request make of a replica's job; and how many accelerators jobs may have."""

from babysitter.agent.accelerators import Need
from babysitter.agent.requests import wrong
from babysitter.agent.settings import AcceleratorSettings, AgentSettings
from babysitter.agent.slurm.job import BadOption, checked
from babysitter.agent.template_request import Recipe
from common.wire.create import GroupPlace

KIND, NO_VARIABLE = "gpu", "SUITE_UNUSED"


def job_of(
    settings: AgentSettings, recipe: Recipe | None, need: Need, group: GroupPlace | None = None
) -> dict[str, str]:
    """The options of its job; none where the agent runs replicas itself.

    Raises:
        ApiError: 422; no job may have them, or it is to be a member of a group, whose address must be known before it runs.
    """
    if settings.runner == "local":
        return {}
    if group is not None:
        raise wrong("group", "its members cannot be jobs of Slurm")
    gres = {"gres": f"{KIND}:{need.count}"} if need.count else {}
    asked = recipe.job(accelerators=need.count) if recipe is not None else {}
    try:
        return checked({**gres, **settings.slurm.job, **asked})
    except BadOption as error:
        raise wrong("backend.parameters", str(error)) from error


def shared_out(settings: AgentSettings) -> AcceleratorSettings:
    """What the planner may count on: of Slurm so many as the operator says, which Slurm gives; of this machine none."""
    own = settings.accelerators
    if settings.runner == "local":
        return own
    changed = {"kind": KIND, "variable": NO_VARIABLE, "count": own.count or 0, "claims": ()}
    return own.model_copy(update=changed)
