"""What the tests of evaluations share."""

import pytest

from tests.callbacks.trained import stored


@pytest.fixture(scope="session")
def trained():
    """A small network that is right on most test images, and not under attack."""
    return stored()
