"""API keys from files: never in argv, where every user of the machine could read them."""

import stat
from pathlib import Path

from common.atomic_file import read_bounded
from ctl.codes import Code
from ctl.problem import Problem

_LIMIT_BYTES = 4096


def read_secret(path: Path) -> str:
    """The one line in `path`, a file that only its owner can read.

    Raises:
        Problem: It is missing, readable by others, or holds no key.
    """
    try:
        mode = path.lstat().st_mode
        text = read_bounded(path, limit_bytes=_LIMIT_BYTES).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise Problem(f"key file {path}: {error}", code=Code.CONFIG) from error
    if stat.S_IMODE(mode) & 0o077:
        raise Problem(f"key file {path}: others can read it", hint=f"run: chmod 600 {path}", code=Code.CONFIG)
    if not text or not text.isprintable() or " " in text:
        raise Problem(f"key file {path}: holds no key", hint="write the key in its first line", code=Code.CONFIG)
    return text
