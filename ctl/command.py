"""What a command is: its words for the command line, and the function that does it."""

from __future__ import annotations  # Call is heavy to import, and a command line is parsed without it

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Coroutine

    from ctl.call import Call


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `name` is its words, `examples` are shown by `--help` and parsed by a test."""

    name: str
    run: Callable[[Call], int | Coroutine[Any, Any, int]]
    add: Callable[[ArgumentParser], None] = lambda _parser: None
    details: str = ""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """A command's words, what it does in a few words, and the module of `ctl.commands` that has the rest."""

    name: str
    help: str
    module: str

    def load(self) -> Command:
        """The command; imports its module."""
        commands: tuple[Command, ...] = importlib.import_module(f"ctl.commands.{self.module}").COMMANDS
        return next(command for command in commands if command.name == self.name)
