"""Running the tools of a deployment (uv, venv, pip): output as it comes, a deadline, and the whole group ended."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from babysitter.identity import MARK

OUTPUT_LIMIT_BYTES = 64 << 10
LINE_LIMIT_BYTES = 1 << 20
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CA_FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""By which pip finds its CA certificates: the first since it asks the system (24.2), the second before and after."""
PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "XDG_CACHE_HOME"),
    *(*_PROXIES, *(name.lower() for name in _PROXIES)),
    *(*CA_FILES, "SSL_CERT_DIR", "CURL_CA_BUNDLE"),
)
"""Variables a tool gets: its machine's and its network's; no PIP_*, no token (docs/faults.md G18)."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a tool ended: its exit code (None: ended at its deadline) and the end of what it said."""

    code: int | None
    output: str


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout_s: float,
    on_line: Callable[[str], None],
) -> Done:
    """Run one tool, handing each line of its output to `on_line`.

    Raises:
        OSError: It cannot be run.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=dict(env),
        limit=LINE_LIMIT_BYTES,
    )
    lines: list[str] = []

    async def listen() -> None:
        if process.stdout is None:
            return
        async for raw in process.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            lines.append(line)
            on_line(line)
            if len(lines) > OUTPUT_LIMIT_BYTES // 64:
                del lines[: len(lines) // 2]

    try:
        async with asyncio.timeout(timeout_s):
            await listen()
            await process.wait()
    except TimeoutError:
        return Done(None, "\n".join([*lines, f"took longer than {timeout_s:g} s"]))
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
    return Done(process.returncode, "\n".join(lines))


def environment(environ: Mapping[str, str], *, mark: str, netrc: Path | None, ca_file: Path | None) -> dict[str, str]:
    """What a tool's environment holds. `mark` finds it again should we die; `netrc` has the index's credentials."""
    passed = {name: environ[name] for name in PASSED_ON if name in environ}
    login = {} if netrc is None else {"NETRC": str(netrc)}
    certificates = {} if ca_file is None else dict.fromkeys(CA_FILES, str(ca_file.absolute()))
    return {**passed, **login, **certificates, MARK: mark, "PIP_CONFIG_FILE": os.devnull, "PYTHONUNBUFFERED": "1"}


def pip_command(python: str) -> tuple[list[str], dict[str, str]]:
    """How to run pip outside the environment it installs into.

    That of the interpreter, else of the interpreter that its own environment was made from, else the one that it
    bundles for new environments (a zip file, and so the slowest).

    Returns:
        The first words of the command, and variables to add.

    Raises:
        FileNotFoundError: There is none.
    """
    base = _said(python, "import sys; print(sys._base_executable)") or python
    for candidate in dict.fromkeys((python, base)):
        if _said(candidate, "import pip; print(pip.__version__)"):
            return [candidate, "-m", "pip"], {}
    bundled = Path(sysconfig.get_path("stdlib")) / "ensurepip" / "_bundled"
    wheels = sorted(bundled.glob("pip-*.whl"))
    if not wheels:
        raise FileNotFoundError(2, f"no pip for {python}, and none bundled in {bundled}")
    return [python, "-m", "pip"], {"PYTHONPATH": str(wheels[-1])}


def _said(python: str, program: str) -> str | None:
    """What a one-line program prints; None when it fails."""
    done = subprocess.run([python, "-I", "-c", program], check=False, capture_output=True, text=True)  # noqa: S603 - the configured interpreter
    return done.stdout.strip() if done.returncode == 0 else None


def pip_arguments(
    *,
    index: str,
    trusted_hosts: Sequence[str],
    venv_python: Path,
    constraints: Path,
    report: Path,
    only_binary: bool,
) -> list[str]:
    """The options of every pip run: one index, nothing from files or variables, no questions."""
    return [
        "--isolated",
        "--no-input",
        "--disable-pip-version-check",
        "--retries",
        "2",
        "--timeout",
        "15",
        "--python",
        str(venv_python),
        "install",
        "--index-url",
        index,
        *(word for host in trusted_hosts for word in ("--trusted-host", host)),
        "--constraint",
        str(constraints),
        "--report",
        str(report),
        "--no-warn-script-location",
        *(["--only-binary", ":all:"] if only_binary else []),
    ]
