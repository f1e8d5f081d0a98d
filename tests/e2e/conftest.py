"""What most end-to-end tests ask of the cluster that their module starts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from isoloss.client.blocking import Client
from isoloss.testing.cluster import Cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """A client of the module's cluster."""
    with cluster.client() as client:
        yield client
