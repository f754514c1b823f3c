"""A pool that the tests of training share."""

from pathlib import Path

import pytest
from material import fill_sources

from vsdiqp.training.pool import PoolSettings, generate


@pytest.fixture(scope="session")
def small_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four items of 128x128, six frames."""
    sources, folder = tmp_path_factory.mktemp("small-sources"), tmp_path_factory.mktemp("small-pool")
    fill_sources(sources / "all", side=192)
    generate(sources / "all", folder, 4, seed=3, settings=PoolSettings(height=128, width=128, frames=6))
    return folder
