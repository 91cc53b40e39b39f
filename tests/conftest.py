"""Fixtures shared by all rooms: seeded arrays, the data folder, hypothesis without a clock."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")


@pytest.fixture(scope="session")
def nestling_data() -> Path:
    """The folder of public data sets, or a loud skip."""
    folder = os.environ.get("NESTLING_DATA")
    if not folder:
        pytest.skip("NESTLING_DATA is not set: tests on public data sets are not run")
    return Path(folder)


@pytest.fixture(scope="session")
def nested_vectors() -> np.ndarray:
    """2,000 x 64 unit vectors whose leading coordinates carry most of the signal, float32."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((2000, 64)) / np.sqrt(np.arange(1, 65))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def nested_queries() -> np.ndarray:
    """50 x 64 unit query vectors of the same kind, float32."""
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((50, 64)) / np.sqrt(np.arange(1, 65))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
