"""Examples of item_tower for the shared tests."""

from tests.examples.two_tower import examples

EXAMPLES = examples("item_tower", "item")
