"""What the tests of exports share."""

from tests.data.conftest import gpt2_vocabulary, hub

__all__ = ["gpt2_vocabulary", "hub"]
