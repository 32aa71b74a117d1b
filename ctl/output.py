"""Where a command's words go: rich on a terminal, plain text in a pipe, JSON when asked for.

Results go to standard output; progress, notes and errors to standard error, so that a pipe carries results only.
"""

import json
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ctl.problem import Problem
from ctl.table import TextTable, as_text, one_line, style_of, visible


class Output:
    """One command's output.

    Args:
        stdout: Where results go.
        stderr: Where everything else goes.
        as_json: Results are JSON documents; notes are left out.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO, *, as_json: bool) -> None:
        self.as_json = as_json
        self.stdout = stdout
        self.console = Console(file=stdout, highlight=False, soft_wrap=True)
        self.errors = Console(file=stderr, highlight=False, soft_wrap=True)

    @property
    def is_rich(self) -> bool:
        """True when results go to a terminal and are meant for a person."""
        return self.console.is_terminal and not self.as_json

    def document(self, data: Any) -> None:
        """A result as JSON: indented for a person's terminal, one line otherwise."""
        indent = 2 if self.console.is_terminal else None
        self.stdout.write(json.dumps(data, indent=indent, ensure_ascii=False, default=str) + "\n")
        self.stdout.flush()

    def entry(self, data: Any) -> None:
        """One of several results as JSON, on a line of its own."""
        self.stdout.write(json.dumps(data, ensure_ascii=False, default=str) + "\n")
        self.stdout.flush()

    def table(self, table: TextTable) -> None:
        """A result as a table."""
        if not self.is_rich:
            self.stdout.write(as_text(table))
            self.stdout.flush()
            return
        self.console.print(rich_table(table), soft_wrap=False)

    def line(self, text: str, style: str = "") -> None:
        """A result as one line."""
        self.console.print(Text(visible(text), style=style))

    def write(self, text: str, style: str = "") -> None:
        """A piece of a result, without a newline, at once."""
        if self.is_rich:
            self.console.print(Text(visible(text), style=style), end="")
        else:
            self.stdout.write(text)
        self.stdout.flush()

    def note(self, text: str, style: str = "dim") -> None:
        """What helps a person and is no result; nothing under `--json`."""
        if not self.as_json:
            self.errors.print(Text(visible(text), style=style))

    def error(self, problem: Problem) -> None:
        """What is wrong, in one line; under --json as a document, on standard error all the same."""
        if self.as_json:
            document = {"error": problem.message, "hint": problem.hint or None, "exit_code": int(problem.code)}
            self.errors.file.write(json.dumps(document, ensure_ascii=False) + "\n")
            return
        line = Text("svcctl: ")
        line.append("error: ", "bold red")
        self.errors.print(line.append(visible(problem.line())))


def rich_table(table: TextTable) -> RichTable:
    """The table in colours; long cells are folded, never cut, because ids and addresses are copied from it."""
    made = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold cyan")
    for name in table.columns:
        numeric = name in table.right
        made.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in table.rows:
        made.add_row(
            *(
                Text(one_line(cell) or "-", style_of(cell) if name in table.states else "" if cell else "dim")
                for name, cell in zip(table.columns, row, strict=True)
            )
        )
    return made
