"""PURE. Members of a record's `metadata` that others act upon; everything else in there is the operator's own."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from common.wire.base import Message
from common.wire.read import read_lenient

Positive = Annotated[int, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class ReportHints(Message, frozen=True, kw_only=True):
    """What routers read of a babysitter's report.

    Args:
        waiting: Requests in the engine's own queue, where it tells.
        models_list: Model objects that were too many for the record.
    """

    waiting: Annotated[int, msgspec.Meta(ge=0)] | None = None
    models_list: list[Any] | None = None


class Hints(Message, frozen=True, kw_only=True):
    """What a record's metadata says to routers, registries and Prometheus. None: it says nothing of it.

    Operators write some of it by hand: an entry of a list that is no text, or no object, costs no other entry.

    Args:
        type: `RecordKind`, or a babysitter's label.
        models: Ids of the models served.
        models_list: The model objects, where they are small enough for a record.
        loadable: LoRA adapters that its babysitter loads when somebody asks for one.
        parent_service: The babysitter's own record.
        babysitter_url: Where that babysitter answers.
        node: The name of the agent's node.
        api_prefix: The form of path that the server knows: `/v1`, or empty.
        cache_type: `paged` or `static` (docs/contract.md 2).
        max_concurrency: Requests that the server takes at once.
        weight: Relative share, where the record itself has none.
        serves: Calls that it answers, as kinds or as paths (router/serves.py).
        messages: `native` if it has Anthropic's `/v1/messages` itself, `translate` if it is to get chats instead.
        stream_end_mark: Whether its streams end with `[DONE]`.
        continues: Which broken-off streams it can go on with: `chat`, `completions`, both in a list, or `none`.
        revision: Of its model's weights; replicas that declare another one never go on with each other's streams.
        tokenizer: Likewise.
        slow_start_s: Time in which routers raise a fresh server's share.
        metrics_path: Where Prometheus finds its metrics.
        api_key_label: Under which label routers know the key that it needs; the key itself is never told.
        replica: The babysitter's last report, put in by the registry.
    """

    type: str | None = None
    models: list[Any] | None = None
    models_list: list[Any] | None = None
    loadable: list[Any] | None = None
    parent_service: str | None = None
    babysitter_url: str | None = None
    node: str | None = None
    api_prefix: str | None = None
    cache_type: str | None = None
    max_concurrency: Positive | None = None
    weight: NotNegative | None = None
    serves: list[Any] | str | None = None
    messages: Literal["native", "translate"] | None = None
    stream_end_mark: bool | None = None
    continues: list[Any] | str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    slow_start_s: NotNegative | None = None
    metrics_path: str | None = None
    api_key_label: str | None = None
    replica: ReportHints | None = None


def hints_of(metadata: Mapping[str, Any]) -> Hints:
    """What `metadata` says; a member of another type than it should have says nothing."""
    return read_lenient(Hints, metadata)
