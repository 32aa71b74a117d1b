"""`svcctl tls init` and `svcctl tls show`: a CA of one's own, and certificates of it for a handful of nodes."""

from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from common.names import is_host, is_service_name
from ctl import completers
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.problem import Problem
from ctl.table import TextTable

DAYS = 825


def add(parser: ArgumentParser) -> None:
    """Flags of `tls init`."""
    parser.add_argument("nodes", metavar="NODE[:HOST,…]", nargs="+", help="a node, and what else it is reached at")
    parser.add_argument("--days", type=float, default=DAYS, metavar="N", help=f"how long they hold (default: {DAYS})")
    parser.add_argument("--renew", action="store_true", help="make those that are there anew")
    _add_folder(parser)


def _add_folder(parser: ArgumentParser) -> None:
    folder = parser.add_argument("--dir", default="tls", metavar="DIR", help="where the files are (default: tls)")
    completers.attach(folder, completers.files())


def init(call: Call) -> int:
    """Make what is not there yet."""
    certificates, folder = library(), Path(call.args.dir)
    nodes = [parsed(text) for text in call.args.nodes]
    if not 0 < call.args.days <= certificates.CA_DAYS:
        raise Problem(f"--days must be more than 0, and at most the CA's {certificates.CA_DAYS}", code=Code.USAGE)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if certificates.make_ca(folder):
        call.out.note(f"made {folder}/ca.pem, for every node, and {folder}/ca.key: keep it, and give it to none", "")
    for node, others in nodes:
        if (folder / f"{node}.pem").exists() and not call.args.renew:
            call.out.note(f"kept {folder}/{node}.pem (--renew makes it anew)", "")
            continue
        try:
            certificates.make_node(folder, node, others, call.args.days)
        except ValueError as error:
            raise Problem(str(error), code=Code.CONFIG) from error
        call.out.note(f"made {folder}/{node}.pem and {folder}/{node}.key: copy them and ca.pem to {node}", "")
    return show(call)


def show(call: Call) -> int:
    """Each certificate with its names and its end."""
    certificates, rows = library(), []
    for path in sorted(Path(call.args.dir).glob("*.pem")):
        try:
            names, ends = certificates.read(path)
        except ValueError as error:
            raise Problem(f"{path}: {error}", code=Code.CONFIG) from error
        rows.append((str(path), ends.isoformat(), (ends - datetime.now(UTC)).days, names))
    if call.out.as_json:
        keys = ("file", "expires_at", "days_left", "names")
        call.out.document({"certificates": [dict(zip(keys, row, strict=True)) for row in rows]})
        return Code.OK
    shown = [(file, ends[:10], str(days), ", ".join(names)) for file, ends, days, names in rows]
    call.out.table(TextTable(("FILE", "EXPIRES", "DAYS", "NAMES"), shown, right=frozenset({"DAYS"})))
    return Code.OK


def parsed(text: str) -> tuple[str, tuple[str, ...]]:
    """A node and its further names, of `NODE[:HOST,…]`.

    Raises:
        Problem: It is none.
    """
    node, _, rest = text.partition(":")
    others = tuple(part for part in rest.split(",") if part)
    wrong = next((name for name in others if not is_host(name)), None)
    if not is_service_name(node) or node == "ca" or wrong is not None:
        raise Problem(f"{wrong or text!r} is no node's name", hint="write NODE or NODE:10.0.0.2", code=Code.USAGE)
    return node, others


def library() -> ModuleType:
    """What makes certificates.

    Raises:
        Problem: Its package is missing.
    """
    try:
        from ctl import certificates  # noqa: PLC0415 - an extra
    except ImportError as error:
        hint = "install it with: pip install 'inference-svc[tls]'"
        raise Problem("'svcctl tls' needs the package cryptography", hint=hint, code=Code.CONFIG) from error
    return certificates


COMMANDS = (
    Command(
        "tls init",
        init,
        add,
        details="Makes DIR/ca.pem and DIR/ca.key once, and for each node NODE.pem and NODE.key, which services take as\n"
        "tls_cert_file and tls_key_file, with ca.pem as tls_ca_file (docs/guides/tls.md).",
        examples=("svcctl tls init node-a node-b:10.0.0.2", "svcctl tls init --dir tls --renew node-a"),
    ),
    Command("tls show", show, _add_folder, examples=("svcctl tls show --dir tls",)),
)
