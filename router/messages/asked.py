"""PURE. What is read of a request of Anthropic's Messages API; msgspec names the place of whatever does not fit.

Not compiled, as completion.py. Members that are not here do not change what the model reads.
"""

from typing import Annotated, Any, Literal

import msgspec

from common.wire.base import JsonObject


class Base64(msgspec.Struct, tag="base64"):
    """An image in the request itself."""

    media_type: str
    data: str


class Url(msgspec.Struct, tag="url"):
    """An image elsewhere."""

    url: str


class Text(msgspec.Struct, tag="text"):
    """A block of text."""

    text: str


class Image(msgspec.Struct, tag="image"):
    """A picture for the model."""

    source: Base64 | Url


class ToolResult(msgspec.Struct, tag="tool_result"):
    """What a tool answered."""

    tool_use_id: str
    content: str | list[Text | Image] | None = None
    is_error: bool | None = None


class ToolUse(msgspec.Struct, tag="tool_use"):
    """A call of a tool in an answer of before."""

    id: str
    name: str
    input: JsonObject


class Thinking(msgspec.Struct, tag="thinking"):
    """Thoughts in an answer of before."""

    thinking: str
    signature: Any = None


class RedactedThinking(msgspec.Struct, tag="redacted_thinking"):
    """Thoughts that only Anthropic can read."""


class User(msgspec.Struct, tag_field="role", tag="user"):
    """What the user said, and what tools answered."""

    content: str | list[Text | Image | ToolResult]


class Assistant(msgspec.Struct, tag_field="role", tag="assistant"):
    """An answer of before."""

    content: str | list[Text | ToolUse | Thinking | RedactedThinking]


class System(msgspec.Struct, tag_field="role", tag="system"):
    """Instructions in the middle of a conversation."""

    content: str | list[Text]


class Tool(msgspec.Struct):
    """A tool of the client's own: those of Anthropic's have other types."""

    name: str
    type: Literal["custom"] | None = None
    description: Any = None
    input_schema: Any = None
    strict: Any = None


class ToolChoice(msgspec.Struct):
    """Whether a tool is to be called, and which."""

    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def __post_init__(self) -> None:
        if self.type == "tool" and self.name is None:
            raise ValueError("the type `tool` needs a `name`")


class Format(msgspec.Struct, tag="json_schema"):
    """The form of the answer."""

    schema: JsonObject


class Output(msgspec.Struct, forbid_unknown_fields=True):
    """What the answer is to be like."""

    effort: str | None = None
    format: Format | None = None


class Metadata(msgspec.Struct):
    """About the request."""

    user_id: str | None = None


class Asked(msgspec.Struct):
    """A request."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    messages: list[User | Assistant | System]
    system: str | list[Text] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    output_config: Output | None = None
    output_format: Format | None = None
