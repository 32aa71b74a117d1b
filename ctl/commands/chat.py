"""`svcctl chat MODEL "…"`: ask a model through the router and show its answer as it comes."""

import sys
import time
from argparse import ArgumentParser

from ctl import completers
from ctl.api import Api
from ctl.call import Call
from ctl.codes import Code
from ctl.command import Command
from ctl.problem import Problem
from ctl.sse import Events
from ctl.views.answer import ChatAnswer

PATH = "/v1/chat/completions"
SILENCE_S = 600.0
"""Of a server; the router ends a stalled stream sooner."""


def add(parser: ArgumentParser) -> None:
    """Flags of `chat`."""
    model = parser.add_argument("model", metavar="MODEL", help="the model, as 'svcctl models' lists it")
    completers.attach(model, completers.models)
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="what to say; - reads standard input; none: a conversation"
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is the most predictable")
    parser.add_argument("--stats", action="store_true", help="tell the time to the first token and the pace")


async def chat(call: Call) -> int:
    """One question, or a conversation."""
    prompt = call.args.prompt
    talks = prompt is None and sys.stdin.isatty() and call.out.is_rich
    if prompt == "-" or (prompt is None and not talks):
        prompt = sys.stdin.read()
    messages = [{"role": "system", "content": call.args.system}] if call.args.system else []
    async with call.connect() as calls:
        if talks:
            return await converse(call, calls, messages)
        if not (prompt or "").strip():
            raise Problem("nothing to say", hint='svcctl chat MODEL "your question"', code=Code.USAGE)
        answer = await ask(call, calls, [*messages, {"role": "user", "content": prompt}])
    if call.out.as_json:
        call.out.document(answer.to_json(call.args.model))
    elif call.args.stats or call.out.is_rich:
        call.out.note(answer.summary())
    return Code.OK


async def converse(call: Call, calls: Api, messages: list[dict[str, str]]) -> int:
    """Questions from the terminal until end of file; what was said before goes along."""
    call.out.note(f"talking to {call.args.model}; Ctrl-D ends it")
    while True:
        try:
            question = call.out.console.input("[bold cyan]> [/]")
        except EOFError:
            call.out.line("")
            return Code.OK
        if question.strip():
            messages.append({"role": "user", "content": question})
            answer = await ask(call, calls, messages)
            messages.append({"role": "assistant", "content": answer.text})
            call.out.note(answer.summary())


async def ask(call: Call, calls: Api, messages: list[dict[str, str]]) -> ChatAnswer:
    """One answer, shown while it comes.

    Raises:
        Problem: The router refuses, or the stream breaks.
    """
    args = call.args
    options = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    body = {
        "model": args.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in options.items() if value is not None},
    }
    answer = ChatAnswer(time.monotonic())
    events = Events()
    async with calls.open(call.router, "POST", PATH, body=body, silence_s=SILENCE_S) as stream:
        async for chunk in stream.content.iter_any():
            try:
                for event in events.feed(chunk):
                    show(call, *answer.take(event, time.monotonic()))
            except ValueError as error:
                raise broken(call, answer, str(error)) from error
    if not answer.done and answer.finish_reason is None:
        raise broken(call, answer, "the stream ended early")
    if not call.out.as_json:
        call.out.write("\n")
    return answer


def show(call: Call, thoughts: str, text: str) -> None:
    """A piece of the answer; a model's thoughts are for people only."""
    if call.out.as_json:
        return
    if thoughts and call.out.is_rich:
        call.out.write(thoughts, "dim italic")
    if text:
        call.out.write(text)


def broken(call: Call, answer: ChatAnswer, reason: str) -> Problem:
    """The stream's fault, on a line of its own."""
    if answer.pieces and not call.out.as_json:
        call.out.write("\n")
    return Problem(f"the answer broke off: {reason}", hint=f"ask again, or see 'svcctl explain {call.args.model}'")


COMMANDS = (
    Command(
        "chat",
        chat,
        add,
        details="Without a PROMPT, on a terminal, it is a conversation. --json prints one document at the end.",
        examples=(
            'svcctl chat mock-small "Hello"',
            'svcctl chat qwen-7b "Name three rivers" --max-tokens 60 --stats',
            "svcctl chat qwen-7b - --json",
        ),
    ),
)
