"""The description of the agent's API is true: schemathesis sends what it allows, and what it does not, to a real agent."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from babysitter.agent.routes import ROUTES
from tests.babysitter.agent.agent_process import agent

# Which builds, wheels and directories there are, no schema can say; nor that "80" is taken for 80 and null for nothing.
EXCLUDED: list[Any] = [positive_data_acceptance, negative_data_rejection]
ENDING = [route for route in ROUTES if not route.endless]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenApiSchema]:
    # No babysitter is started in earnest: each of the many replicas ends at once, and is left alone.
    given = {"babysitter_command": ["/bin/sh", "-c", "exit 78"], "max_replicas": 100_000}
    with agent(tmp_path_factory.mktemp("agent"), settings=given) as node:
        node.start()
        schema = schemathesis.openapi.from_url(f"{node.url}/openapi.json")
        assert isinstance(schema, OpenApiSchema)
        yield schema


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        pytest.param(route.method.lower(), route.path, mode, id=f"{route.method} {route.path} {mode.value}")
        for route in ENDING
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if mode is GenerationMode.POSITIVE or route.body  # a filter that matches nothing is no fault
    ],
)
def test_api_answers_as_it_is_described(api: OpenApiSchema, method: str, path: str, mode: GenerationMode) -> None:
    operation = api[path][method.upper()]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    def call(case: Any) -> None:
        case.call_and_validate(excluded_checks=EXCLUDED, timeout=10)

    call()
