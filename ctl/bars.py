"""Long work on a terminal: a bar for each thing that is waited for, with its stage's name."""

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
from ctl.progress import ProgressBoard
from ctl.table import visible

BAR_WIDTH = 24


class Bars(ProgressBoard):
    """A board of bars.

    Args:
        out: Where to.
        progress: The bars.
    """

    def __init__(self, out: Output, progress: Progress) -> None:
        super().__init__(out)
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, name: str, stage: str, *, share: float | None = None, detail: str = "") -> None:
        """What `name` does now, and how far it is."""
        self._draw(name, visible(f"{stage}  {detail}".strip()), share, "")

    def end(self, name: str, stage: str, *, well: bool = True) -> None:
        """`name` is over."""
        self._draw(name, visible(stage), 1.0, "green" if well else "bold red")
        self._progress.stop_task(self._tasks[name])

    def _draw(self, name: str, text: str, share: float | None, style: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task("", total=None, who=visible(name), stage=Text(text))
        number = self._tasks[name]
        if share is None:
            # update() takes None for "as it was"; only so a bar that had an end pulses again.
            next(task for task in self._progress.tasks if task.id == number).total = None
        stage = Text(text, style, overflow="ellipsis", no_wrap=True)
        self._progress.update(number, total=None if share is None else 1.0, completed=share or 0.0, stage=stage)


def progress_of(out: Output) -> Progress:
    """Bars on the terminal that errors go to; they move while the progress is entered."""
    columns = (
        SpinnerColumn(finished_text="[green]✔[/]"),
        TextColumn("[bold]{task.fields[who]}"),
        BarColumn(BAR_WIDTH),
        TimeElapsedColumn(),
        StageColumn(),
    )
    return Progress(*columns, console=out.errors, refresh_per_second=8)


class StageColumn(ProgressColumn):
    """The stage's name and detail, as it was given: no markup is read from it."""

    def render(self, task: Task) -> Text:
        """rich: the cell."""
        stage = task.fields["stage"]
        return stage if isinstance(stage, Text) else Text(str(stage))
