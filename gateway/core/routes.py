"""The platform's routes: everything under ``/v1`` that is not inference.

Floor: core (pure). One table for whoever needs to know a route: a worker decides by it who may call what, and what a
path is called in log and metrics; the control process puts its handlers behind it; the OpenAPI document and the tests
that walk over all routes are made from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.state import Scope

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        method: its HTTP method.
        template: its path; ``{name}`` stands for one id.
        scope: what a key needs.
    """

    method: str
    template: str
    scope: Scope

    @property
    def segments(self) -> tuple[str, ...]:
        """The parts of the path."""
        return tuple(self.template.strip("/").split("/"))


def _read(method: str, template: str) -> Route:
    return Route(method, template, Scope.READ)


def _full(method: str, template: str) -> Route:
    return Route(method, template, Scope.FULL)


PLATFORM: Final[tuple[Route, ...]] = (
    _read("GET", "/v1/tasks"),
    _read("POST", "/v1/tasks/match"),
    _read("GET", "/v1/tasks/{task_id}"),
    _read("GET", "/v1/tasks/{task_id}/leaderboard"),
    _read("GET", "/v1/eval/frontier-models"),
    _read("GET", "/v1/endpoints"),
    _full("POST", "/v1/endpoints"),
    _read("GET", "/v1/endpoints/{endpoint_id}"),
    _full("DELETE", "/v1/endpoints/{endpoint_id}"),
    _full("POST", "/v1/endpoints/{endpoint_id}/start"),
    _full("POST", "/v1/endpoints/{endpoint_id}/stop"),
    _read("GET", "/v1/endpoints/{endpoint_id}/performance"),
    _read("GET", "/v1/endpoints/{endpoint_id}/uptime"),
    _read("GET", "/v1/endpoints/{endpoint_id}/cost"),
    _read("GET", "/v1/endpoints/{endpoint_id}/quality"),
    _read("GET", "/v1/endpoints/{endpoint_id}/activity"),
    _read("GET", "/v1/eval-sets"),
    _full("POST", "/v1/eval-sets"),
    _read("GET", "/v1/eval-sets/{set_id}"),
    _full("DELETE", "/v1/eval-sets/{set_id}"),
    _full("POST", "/v1/eval-sets/{set_id}/attach-blob"),
    _full("POST", "/v1/eval-sets/{set_id}/blob-upload-url"),
    _full("POST", "/v1/eval-sets/{set_id}/blob-upload-complete"),
    _read("GET", "/v1/eval-runs"),
    _full("POST", "/v1/eval-runs"),
    _read("GET", "/v1/eval-runs/{run_id}"),
)
"""All of them. A literal segment goes before an id: ``match`` is no task."""


def find(path: str, routes: Sequence[Route] = PLATFORM) -> tuple[str, Mapping[str, Route]] | None:
    """The template of a path and its routes by method; ``None`` if there is no such path."""
    segments = tuple(path.split("/")[1:])
    fitting = [route for route in routes if _fits(route.segments, segments)]
    if not fitting:
        return None
    template = min((route.template for route in fitting), key=lambda text: text.count("{"))
    return template, {route.method: route for route in fitting if route.template == template}


def ids_in(template: str, path: str) -> dict[str, str]:
    """The ids in a path that `find` found, by their names."""
    names, values = template.split("/"), path.split("/")
    return {name[1:-1]: value for name, value in zip(names, values, strict=True) if name.startswith("{")}


def _fits(wanted: Sequence[str], given: Sequence[str]) -> bool:
    return len(wanted) == len(given) and all(
        _ID.fullmatch(is_) is not None if want.startswith("{") else want == is_
        for want, is_ in zip(wanted, given, strict=True)
    )
