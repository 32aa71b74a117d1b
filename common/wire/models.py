"""PURE. The list of models as OpenAI's clients read it; babysitters and routers answer with it."""

from typing import Literal

from common.wire.base import Message, ModelObject


class ModelList(Message, frozen=True, kw_only=True):
    """`GET /v1/models`; a model object is as its server writes it."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
