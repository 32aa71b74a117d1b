"""PURE: command templates from the settings: `{name}` inside a word is replaced, a word never becomes two."""

from collections.abc import Mapping, Sequence


def fill(template: Sequence[str], words: Mapping[str, str], flags: Sequence[str] = ()) -> list[str]:
    """The command that `template` makes with `words`; a word that is `{flags}` becomes all of `flags`."""
    filled: list[str] = []
    for word in template:
        if word == "{flags}":
            filled += flags
            continue
        for name, value in words.items():
            word = word.replace(f"{{{name}}}", value)  # noqa: PLW2901 - one placeholder after the other
        filled.append(word)
    return filled
