"""What the programs' command lines have in common."""

import argparse
from collections.abc import Callable, Sequence


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A flag's list of names, or `all`."""

    def names(text: str) -> list[str]:
        given = list(known) if text == "all" else text.split(",")
        strange = [name for name in given if name not in known]
        if strange:
            raise argparse.ArgumentTypeError(f"{strange[0]!r} is none of {', '.join(known)}")
        return given

    return names
