"""What requests are to be looked at for, worked out when the table or the keys change, so that each request compares a flag."""

from router.facts import PolicyNeeds
from router.model import Table
from router.policy.choose import Chooser
from router.proxy.limits import Limits


class Needs:
    """What this worker's table, policies and keys need of a request.

    Args:
        table: Who is there.
        chooser: Whose policies decide; it has this table already.
        limits: The worker's limits.
        keys: Whether the router has API keys.
    """

    def __init__(self, table: Table, chooser: Chooser, limits: Limits, *, keys: bool) -> None:
        endpoints = table.endpoints
        self.key = keys
        """A client shows an API key."""
        self.text_length = any(endpoint.cache_type for endpoint in endpoints)
        """Some replica has a cache type, which the length of the prompt's text chooses."""
        self.room = any(endpoint.limit for endpoint in endpoints)
        """Some replica takes a limited number of requests at once."""
        self.adapters = bool(table.loadable)
        """Some adapter is loaded when somebody asks for it."""
        self.call = any(endpoint.serves is not None for endpoint in endpoints)
        """It is known of some replica which calls it answers."""
        self.survival = chooser.rules.survives
        """Some model's streams are rescued, or its requests hedged."""
        self.headers = chooser.uses("session") or limits.allow_policy_header
        """A header may name the session or the policy."""
        asks = self.headers or chooser.reads_any_prompt()
        self.policies = PolicyNeeds(chooser.reads_prompt, None, None, self.headers) if asks else None
        """What policies need beside the model; None where none needs anything."""
