"""PURE. The models that a urlencoded text names: a query, or a body of that type (`curl -d` says so of its JSON too).

Servers differ in whether `;` separates fields: both readings count, and so does a name in another case.
"""

from urllib.parse import parse_qsl, urlencode

FIELDS_LIMIT = 10_000
"""Of a body: to take more apart would keep the worker busy for longer than anybody's form is worth."""


def models_in(text: bytes) -> frozenset[str]:
    """Every value that somebody may take for `model`.

    Raises:
        ValueError: It has more fields than `FIELDS_LIMIT`; no query does that a head can hold.
    """
    plain = text.decode("utf-8", "replace")
    return frozenset(
        value
        for reading in {plain, plain.replace(";", "&")}
        for name, value in parse_qsl(reading, keep_blank_values=True, max_num_fields=FIELDS_LIMIT)
        if _is_model(name)
    )


def with_model(text: bytes, model: str) -> bytes:
    """The same fields with another model, written anew with `&` between them, so that all read the same from then on."""
    plain = text.decode("utf-8", "replace")
    fields = parse_qsl(plain, keep_blank_values=True)
    if not any(_is_model(name) for name, _ in fields):
        fields = parse_qsl(plain.replace(";", "&"), keep_blank_values=True)
    return urlencode([(name, model if _is_model(name) else value) for name, value in fields]).encode()


def _is_model(name: str) -> bool:
    return name.strip().lower() == "model"
