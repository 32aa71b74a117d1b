"""Configuration files as `up` reads them: only the few facts that it needs; the processes judge the rest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctl.codes import Code
from ctl.launcher.plan import BABYSITTER, DEMO, BabysitterFile, Listener, demo_file, scheme
from ctl.problem import Problem

PORTS = range(1, 65_536)


def listener(file: str | None, port: int | None, usual: Listener, *, kind: str, env: Mapping[str, str]) -> Listener:
    """A service's place: the flag's port, else its file's (as `port` or with its kind before), else the usual one.

    Raises:
        Problem: The file cannot be used.
    """
    table = _table(Path(file)) if file else {}
    host = table.get("host", usual.host)
    number = port if port is not None else table.get(f"{kind}_port", table.get("port", usual.port))
    path = str(Path(file).absolute()) if file else None
    place = _port(number, file or f"{kind}_port")
    return Listener(place, str(host), path, frozenset(table), scheme(kind, env, table))


def babysitter(path: Path, env: Mapping[str, str]) -> BabysitterFile:
    """A babysitter's file.

    Raises:
        Problem: It cannot be used.
    """
    table = _table(path)
    if "port" not in table:
        raise Problem(f"{path}: 'port' is missing", hint="write port = 8100, say", code=Code.CONFIG)
    host, name = table.get("host", "localhost"), table.get("name", path.stem)
    port, spoken = _port(table["port"], str(path)), scheme(BABYSITTER, env, table)
    return BabysitterFile(str(path.absolute()), str(name), port, str(host), frozenset(table), spoken)


def demo(root: Path, registry_url: str, first_port: int, env: Mapping[str, str]) -> list[BabysitterFile]:
    """The two mock replicas of `--demo`, their files written to the state directory."""
    folder = root / "data" / "demo"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number, model in enumerate(DEMO):
        text = demo_file(model, first_port + 10 * number, registry_url)
        (folder / f"{model}.toml").write_text(text, encoding="utf-8")
    return [babysitter(folder / f"{model}.toml", env) for model in DEMO]


def _table(path: Path) -> dict[str, Any]:
    # Here, because it takes as long to import as all the rest, and only this command needs it.
    from common.settings import SettingsError, file_layer  # noqa: PLC0415 - see above

    try:
        return dict(file_layer(path).data)
    except SettingsError as error:
        raise Problem(str(error), code=Code.CONFIG) from error


def _port(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in PORTS:
        raise Problem(f"{where}: port must be 1 to 65535, not {value!r}", code=Code.CONFIG)
    return value
