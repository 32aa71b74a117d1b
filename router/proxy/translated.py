"""The half of a request of Anthropic's Messages API that may have to become a chat, by who is asked."""

from router import dispatch
from router.dispatch import LocalAnswer
from router.facts import BadBody
from router.model import Endpoint
from router.proxy.charged import ChargedRequest
from router.proxy.head import RequestHead
from router.proxy.translation import COUNT_TOKENS, MESSAGES, NO_SUCH_CALL, Translation


class TranslatedRequest(ChargedRequest):
    """What `Exchange` is made on."""

    def note_translation(self) -> None:
        """It may have to be translated, if it is a message."""
        operation = self.head.operation
        if operation is MESSAGES or operation is COUNT_TOKENS:
            self.translation = Translation(self.request_id, counts=operation is COUNT_TOKENS)

    def translate_for(self, endpoint: Endpoint, translation: Translation) -> bool:
        """Make it ready for `endpoint`, which may have only chats; False when it is answered instead."""
        engine = self._engine
        translation.active = engine.translates(endpoint, self.facts.model)
        if not translation.active:
            return True
        if translation.counts:
            self.fail(dispatch.NO_COUNT)
            return False
        try:
            engine.body_bytes += translation.make(self.head, self.body)
        except BadBody as error:
            self.fail(LocalAnswer(400, "not_translatable", str(error)))
            return False
        return True

    def _outgoing(self) -> tuple[RequestHead, bytes]:
        """What the replica gets."""
        sent = self.translation.sent if self.translation is not None else None
        return (self.head, self.body) if sent is None else sent

    def lacks_call(self, status: int, endpoint: Endpoint, translation: Translation) -> bool:
        """True when `endpoint` has no such call, it seems: it is asked for a chat then, or the client is told.

        That it answers to a chat is the proof: some servers answer 404 for a model, too.
        """
        engine = self._engine
        if status not in NO_SUCH_CALL:
            return False
        if translation.active:
            engine.without_messages.discard(endpoint.id)
            return False
        if translation.counts:
            translation.refused = "/messages/count_tokens" not in (endpoint.serves or ())
            return translation.refused
        if engine.has_messages(endpoint, self.facts.model) is not None or endpoint.id in translation.tried:
            return False
        translation.tried = (*translation.tried, endpoint.id)
        engine.without_messages.add(endpoint.id)
        self.dispatch.take_back(endpoint)
        return True
