"""One module for each family of commands; `COMMANDS` is all of them, in the order of `--help`."""

from ctl.call import Command
from ctl.commands import chat, completion, doctor, drain, explain, services, status

COMMANDS: tuple[Command, ...] = (
    *status.COMMANDS,
    *services.COMMANDS,
    *chat.COMMANDS,
    *drain.COMMANDS,
    *explain.COMMANDS,
    *doctor.COMMANDS,
    *completion.COMMANDS,
)
