"""Fixtures of the tests of evaluations."""

import pytest

from tests.callbacks.trained import stored


@pytest.fixture(scope="session")
def trained():
    """A small network that is correct on most test images, and misclassifies them under attack."""
    return stored()
