"""Examples of user_tower for the shared tests."""

from tests.examples.two_tower import examples

EXAMPLES = examples("user_tower", "user")
