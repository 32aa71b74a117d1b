"""The description of the API is true: schemathesis sends what it allows, and what it does not, to a real registry."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from registry.openapi import Route
from registry.routes import ROUTES
from tests.registry.processes import running

EXCLUDED: list[Any] = [
    # What may be registered depends on the network and on who owns a name, which no schema can say.
    positive_data_acceptance,
    # Unknown members and parameters are ignored: clients of both ancestors send some.
    negative_data_rejection,
]
ENDING = [route for route in ROUTES if route.path != "/v1/watch"]  # the watch has no end; its own tests know its form


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenApiSchema]:
    directory: Path = tmp_path_factory.mktemp("registry")
    with running(directory, "--store", "memory://", "--health-interval", "3600", "--health-timeout", "0.1") as (_, url):
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        assert isinstance(schema, OpenApiSchema)
        yield schema


@pytest.mark.parametrize(
    ("route", "mode"),
    [
        pytest.param(route, mode, id=f"{route.method} {route.path} {mode.value}")
        for route in ENDING
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if mode is GenerationMode.POSITIVE or route.body or route.query  # else nothing could be wrong
    ],
)
def test_api_answers_as_it_is_described(api: OpenApiSchema, route: Route, mode: GenerationMode) -> None:
    operation = api[route.path][route.method]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    def call(case: Any) -> None:
        case.call_and_validate(excluded_checks=EXCLUDED, timeout=5)

    call()


def test_every_route_is_described(api: OpenApiSchema) -> None:
    described = {(method.upper(), path) for path, item in api.raw_schema["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in ROUTES}
