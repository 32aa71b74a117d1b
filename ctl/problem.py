"""What a command ends with when it cannot do its work: one line, what to do next, and an exit code."""

from ctl.codes import Code


class Problem(Exception):
    """A command cannot go on.

    Args:
        message: What is wrong, without a full stop.
        hint: What to do next.
        code: The exit code.
    """

    def __init__(self, message: str, *, hint: str = "", code: Code = Code.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def line(self) -> str:
        """Message and hint in one line."""
        text = f"{self.message}; {self.hint}" if self.hint else self.message
        return " ".join(text.split())
