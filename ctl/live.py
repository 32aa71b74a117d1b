"""Long work as it goes: bars with the stage's name on a terminal, one line per change otherwise, nothing under --json."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from ctl.output import Output
from ctl.table import visible

BAR_WIDTH = 24


class ProgressBoard:
    """One line for each thing that is waited for.

    Args:
        out: Where to.
        progress: The bars; None where there is no terminal.
    """

    def __init__(self, out: Output, progress: Progress | None) -> None:
        self._out = out
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}

    def show(self, name: str, stage: str, *, share: float | None = None, detail: str = "") -> None:
        """What `name` does now. `share` is 0.0 to 1.0; None when nobody knows how far it is."""
        if self._progress is not None:
            self._draw(name, visible(f"{stage}  {detail}".strip()), share, "")
        elif self._said.get(name) != stage:
            self._said[name] = stage
            self._out.note(f"{name}: {stage}" + (f": {detail}" if detail else ""))

    def end(self, name: str, stage: str, *, well: bool = True) -> None:
        """`name` is over."""
        if self._progress is not None:
            self._draw(name, visible(stage), 1.0, "green" if well else "bold red")
            self._progress.stop_task(self._tasks[name])
        elif self._said.get(name) != stage:
            self._said[name] = stage
            self._out.note(f"{name}: {stage}")

    def _draw(self, name: str, text: str, share: float | None, style: str) -> None:
        if self._progress is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task("", total=None, who=visible(name), stage=Text(text))
        number = self._tasks[name]
        if share is None:
            # update() takes None for "as it was"; only so a bar that had an end pulses again.
            next(task for task in self._progress.tasks if task.id == number).total = None
        stage = Text(text, style, overflow="ellipsis", no_wrap=True)
        self._progress.update(number, total=None if share is None else 1.0, completed=share or 0.0, stage=stage)


@contextmanager
def board(out: Output) -> Iterator[ProgressBoard]:
    """A board while the work lasts; what it shows last stays on the screen."""
    if out.as_json or not out.errors.is_terminal:
        yield ProgressBoard(out, None)
        return
    columns = (
        SpinnerColumn(finished_text="[green]✔[/]"),
        TextColumn("[bold]{task.fields[who]}"),
        BarColumn(BAR_WIDTH),
        TimeElapsedColumn(),
        StageColumn(),
    )
    with Progress(*columns, console=out.errors, refresh_per_second=8) as progress:
        yield ProgressBoard(out, progress)


class StageColumn(ProgressColumn):
    """The stage's name and detail, as it was given: no markup is read from it."""

    def render(self, task: Task) -> Text:
        """rich: the cell."""
        stage = task.fields["stage"]
        return stage if isinstance(stage, Text) else Text(str(stage))
