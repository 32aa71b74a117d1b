"""A terminal for tests: a program runs in a pseudo-terminal, and what a person would see is a grid of characters."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

DEADLINE_S = 60.0
_NAMES = {"brown": "yellow"}
"""pyte's names for colours that rich calls otherwise."""


class Terminal:
    """One program in one pseudo-terminal.

    Args:
        argv: The program.
        env: Its environment.
        cwd: Its working directory.
        columns: Width.
        lines: Height.
    """

    def __init__(
        self, argv: list[str], *, env: Mapping[str, str], cwd: Path, columns: int = 120, lines: int = 30
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        shown = {
            name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "COLORTERM")
        }
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env={**shown, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        """What stands on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def until(self, seen: Callable[[str], bool], what: str) -> str:
        """Read until the screen satisfies `seen`; returns it."""
        deadline = time.monotonic() + DEADLINE_S
        while not seen(self.text):
            assert time.monotonic() < deadline, f"never seen: {what}\n{self.text}"
            if not self._pump() and self.process.poll() is not None:
                assert seen(self.text), f"ended without: {what}\n{self.text}"
        return self.text

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Read to the end; returns the exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while self._pump() or self.process.poll() is None:
            assert time.monotonic() < deadline, f"does not end\n{self.text}"
        return self.process.wait(timeout=10)

    def _pump(self) -> bool:
        """Take what the program wrote; False when there was nothing for a moment, or there is nothing more."""
        if not select.select([self._master], [], [], 0.1)[0]:
            return False
        try:
            raw = os.read(self._master, 1 << 16)
        except OSError:  # nobody has the other end any more
            return False
        self._stream.feed(raw)
        self.raw += raw
        return bool(raw)

    def svg(self, title: str, *, lines: int | None = None) -> str:
        """A picture of the screen, as an SVG of its own with no outside font."""
        used = lines or len(self.text.splitlines())
        console = Console(record=True, width=self.screen.columns, file=io.StringIO(), force_terminal=True)
        for number in range(used):
            row = self.screen.buffer[number]
            text = Text(no_wrap=True, end="\n")
            for column in range(self.screen.columns):
                cell = row[column]
                text.append(cell.data, _style(cell))
            console.print(text, overflow="crop")
        made = console.export_svg(title=title, unique_id=re.sub(r"\W+", "-", title))
        return re.sub(r"@font-face \{.*?\}\s*", "", made, flags=re.DOTALL)


def _style(cell: pyte.screens.Char) -> Style:
    def colour(name: str) -> Color | None:
        if name == "default":
            return None
        if re.fullmatch(r"[0-9a-f]{6}", name):
            return Color.parse(f"#{name}")
        bright = name.removeprefix("bright")
        return Color.parse(("bright_" if bright != name else "") + _NAMES.get(bright, bright))

    return Style(
        color=colour(cell.fg), bgcolor=colour(cell.bg), bold=cell.bold, italic=cell.italics, reverse=cell.reverse
    )


def svcctl(*argv: str, env: Mapping[str, str], cwd: Path, columns: int = 120, lines: int = 30) -> Terminal:
    """Svcctl in a terminal."""
    return Terminal([sys.executable, "-m", "ctl", *argv], env=env, cwd=cwd, columns=columns, lines=lines)
