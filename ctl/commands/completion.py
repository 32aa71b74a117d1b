"""`svcctl completion SHELL`: the shell code that makes TAB work."""

from argparse import ArgumentParser

from argcomplete.shell_integration import shellcode

from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command

SHELLS = ("bash", "zsh", "fish")


def add(parser: ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=SHELLS, help="your shell")


def completion(call: Call) -> int:
    """Print it."""
    code = shellcode(["svcctl"], shell=call.args.shell)
    if call.out.as_json:
        call.out.document({"shell": call.args.shell, "code": code})
    else:
        call.out.write(code.strip() + "\n")
    return Code.OK


COMMANDS = (
    Command(
        "completion",
        completion,
        add,
        details="Offers commands and flags, and the services, replicas and models that exist now.\n\n"
        'bash  eval "$(svcctl completion bash)"          in ~/.bashrc\n'
        'zsh   eval "$(svcctl completion zsh)"           in ~/.zshrc, after compinit\n'
        "fish  svcctl completion fish | source            in ~/.config/fish/config.fish",
        examples=("svcctl completion bash", "svcctl completion fish"),
    ),
)
