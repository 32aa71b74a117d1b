"""One module for each family of commands; `COMMANDS` is all of them, in the order of `--help`."""

from ctl.call import Command
from ctl.commands import (
    chat,
    completion,
    doctor,
    down,
    drain,
    explain,
    lora,
    replicas_create,
    replicas_history,
    replicas_show,
    replicas_stop,
    replicas_wait,
    request,
    services,
    status,
    top,
    up,
)

COMMANDS: tuple[Command, ...] = (
    *up.COMMANDS,
    *down.COMMANDS,
    *status.COMMANDS,
    *replicas_create.COMMANDS,
    *replicas_wait.COMMANDS,
    *replicas_show.COMMANDS,
    *replicas_history.COMMANDS,
    *replicas_stop.COMMANDS,
    *request.COMMANDS,
    *services.COMMANDS,
    *chat.COMMANDS,
    *top.COMMANDS,
    *drain.COMMANDS,
    *lora.COMMANDS,
    *explain.COMMANDS,
    *doctor.COMMANDS,
    *completion.COMMANDS,
)
