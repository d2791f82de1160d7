"""What the tests of tasks share."""

from tests.data.conftest import hub

__all__ = ["hub"]
