"""The table of calls about deployments."""

from common.http.openapi import Parameter, Route
from common.wire.deployment import (
    Demand,
    DemandAnswer,
    DeploymentChange,
    DeploymentInfo,
    DeploymentList,
    ScaleCall,
    UndoCall,
)
from common.wire.specification import DeploymentSpec
from registry.http import deployments

_ONE = "/api/v1/deployments/{name}"
_WRITE = (400, 404, 412, 413, 422, 507)

DEPLOYMENT_ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/routers/{name}/demand",
        deployments.demand,
        "What a router is asked for, by model; answers how every deployment stands.",
        {200: DemandAnswer},
        (400, 413, 422),
        body=Demand,
    ),
    Route(
        "GET",
        "/api/v1/deployments",
        deployments.list_deployments,
        "What should run, and how it stands.",
        {200: DeploymentList},
    ),
    Route("GET", _ONE, deployments.get_deployment, "One deployment.", {200: DeploymentInfo}, (404,)),
    Route(
        "PUT",
        _ONE,
        deployments.put,
        "Say what should run; `If-Match` with the version keeps from overwriting.",
        {200: DeploymentChange, 201: DeploymentChange},
        (409, *_WRITE),
        body=DeploymentSpec,
        query=(Parameter("dry_run", {"enum": ["true", "false"]}, "Only tell what it would do."),),
    ),
    Route("DELETE", _ONE, deployments.delete, "Drain and stop all of it.", {202: DeploymentInfo}, _WRITE),
    Route(
        "POST",
        f"{_ONE}/scale",
        deployments.scale,
        "So many replicas until the next PUT.",
        {200: DeploymentInfo},
        _WRITE,
        body=ScaleCall,
    ),
    Route("POST", f"{_ONE}/wake", deployments.wake, "As if its model were asked for.", {200: DeploymentInfo}, _WRITE),
    Route("POST", f"{_ONE}/sleep", deployments.sleep, "Down to min until asked for.", {200: DeploymentInfo}, _WRITE),
    Route("POST", f"{_ONE}/pause", deployments.pause, "Its rollout stands still.", {200: DeploymentInfo}, _WRITE),
    Route("POST", f"{_ONE}/resume", deployments.pause, "Its rollout goes on.", {200: DeploymentInfo}, _WRITE),
    Route(
        "POST",
        f"{_ONE}/undo",
        deployments.undo,
        "Back to one of the last ten revisions.",
        {200: DeploymentInfo},
        _WRITE,
        body=UndoCall,
        body_required=False,
    ),
    Route(
        "GET",
        f"{_ONE}/events",
        deployments.events,
        "The deployment, whenever it changes.",
        {200: None},
        (404,),
        content_type="text/event-stream",
        endless=True,
    ),
)
