"""`svcctl request from-yaml`: a model configuration becomes a create request. Also reads requests for `replicas create`."""

import json
import os
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.atomic_file import write_atomic
from ctl import completers, late
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.convert import MODES, RequestFlags, UnusableConfig, from_model_config
from ctl.problem import Problem

if TYPE_CHECKING:
    import yaml
else:
    yaml = late.module("yaml")

LIMIT_BYTES = 4 << 20


def add(parser: ArgumentParser) -> None:
    """Flags of `request from-yaml`."""
    file = parser.add_argument("file", metavar="FILE", help="the model configuration; - is standard input")
    completers.attach(file, completers.files("yaml", "yml", "json"))
    add_choices(parser)
    output = parser.add_argument("-o", "--output", metavar="FILE", help="write it there instead")
    completers.attach(output, completers.files("json"))


def add_choices(parser: ArgumentParser) -> None:
    """The flags that stand over a request."""
    group = parser.add_argument_group("the request; each stands over what the file says")
    group.add_argument("--app-tag", metavar="TAG", help="the build to run")
    group.add_argument("--multibox", metavar="NAME", help="where on the cluster")
    group.add_argument("--namespace", metavar="NAME", help="the cluster's namespace")
    group.add_argument("--node", metavar="NAME", help="the node of ours that runs it")
    group.add_argument("--server-mode", "--mode", choices=MODES, metavar="MODE", help=", ".join(MODES))
    group.add_argument("--model-name", "--model", metavar="NAME", help="the model's name")
    group.add_argument("--priority", metavar="P", help="of the cluster's jobs, p0 to p3")
    group.add_argument("--job-timeout", type=int, metavar="S", help="of the cluster's jobs, in seconds")
    group.add_argument("--label", action="append", default=[], metavar="K=V", help="of the cluster's jobs; repeatable")
    group.add_argument("--use-uv", action=BooleanOptionalAction, help="make the client's environment with uv")
    group.add_argument(
        "--wait-for-ready", action=BooleanOptionalAction, help="as the request says it; see --wait as well"
    )
    group.add_argument(
        "--no-wait", dest="wait_for_ready", action="store_false", default=None, help="the old converter's word"
    )
    group.add_argument("--run-diagnostics", action=BooleanOptionalAction, help="ask the server for its diagnostics")
    group.add_argument("--request-id", metavar="ID", help="a second create with the same id makes nothing new")


def choices(args: Namespace) -> RequestFlags:
    """What those flags say."""
    return RequestFlags(
        server_mode=args.server_mode,
        model_name=args.model_name,
        app_tag=args.app_tag,
        multibox=args.multibox,
        namespace=args.namespace,
        node=args.node,
        priority=args.priority,
        timeout_s=args.job_timeout,
        labels=tuple(args.label),
        use_uv=args.use_uv,
        wait_for_ready=args.wait_for_ready,
        run_diagnostics=args.run_diagnostics,
        request_id=args.request_id,
    )


def from_yaml(call: Call) -> int:
    """Print or write the request."""
    args = call.args
    try:
        request = from_model_config(read_table(args.file), choices(args))
        text = json.dumps(request, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (UnusableConfig, ValueError) as error:
        raise Problem(f"{args.file}: {error}", code=Code.CONFIG) from error
    if args.output is None:
        call.out.write(text)
        return Code.OK
    target = Path(args.output)
    try:
        write_atomic(target, text.encode(), mode=0o644 & ~umask())
    except OSError as error:
        raise Problem(f"{target}: {error.strerror}", code=Code.CONFIG) from error
    call.out.note(f"written to {target}; create it with: svcctl replicas create -f {target} --wait")
    if call.out.as_json:
        call.out.document({"written": str(target)})
    return Code.OK


def read_table(file: str) -> dict[str, Any]:
    """A YAML or JSON file that holds a table; `-` is standard input.

    Raises:
        Problem: It cannot be read, or holds something else.
    """
    try:
        if file == "-":
            raw = sys.stdin.buffer.read(LIMIT_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                raw = opened.read(LIMIT_BYTES + 1)
        if len(raw) > LIMIT_BYTES:
            raise Problem(f"{file}: larger than {LIMIT_BYTES} bytes", code=Code.CONFIG)
        table = parse(raw.decode())
    except OSError as error:
        raise Problem(f"{file}: {error.strerror}", code=Code.CONFIG) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise Problem(f"{file}: no valid YAML or JSON: {error}", code=Code.CONFIG) from error
    if not isinstance(table, dict):
        raise Problem(f"{file}: must hold a table, not {type(table).__name__}", code=Code.CONFIG)
    return table


def parse(text: str) -> Any:
    """JSON as JSON, because YAML takes 1e-5 for a word; everything else as YAML."""
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


COMMANDS = (
    Command(
        "request from-yaml",
        from_yaml,
        add,
        details="The configuration goes along whole as full_config. The job's priority, timeout and labels are taken\n"
        "from runconfig (job_priority; job_timeout_s, job_time_sec or job_timeout; job_labels).",
        examples=(
            "svcctl request from-yaml model_config.yaml --app-tag build-1b9c30c813 --multibox dh1",
            "svcctl request from-yaml model_config.yaml --app-tag build-1b9c30c813 | svcctl replicas create -f - --wait",
        ),
    ),
)
