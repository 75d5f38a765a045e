"""Fixtures of a whole gateway with its own tenants; ``tests/conftest.py`` shows them to all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services import PostgresService, run_apart
from tests.system.harness import Gateway, Tenant, running_gateway


@pytest.fixture(scope="session")
def session_gateway(postgres_service: PostgresService) -> Iterator[Gateway]:
    """The gateway that the system and contract tests of a session share: two workers, two simulators."""
    with running_gateway(postgres_service) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def session_tenant(session_gateway: Gateway) -> Tenant:
    """See ``tenant``."""
    return run_apart(session_gateway.tenant())


@pytest.fixture
def gateway(session_gateway: Gateway) -> Iterator[Gateway]:
    """The shared gateway; a test may misuse its simulators, which behave again afterwards."""
    yield session_gateway
    run_apart(session_gateway.faults())


@pytest.fixture
def tenant(gateway: Gateway, session_tenant: Tenant) -> Tenant:
    """An organization with plenty of credit and an endpoint with a token price."""
    del gateway
    return session_tenant
