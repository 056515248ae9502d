"""user_tower for the shared tests."""

from tests.models.two_tower import BARS as BARS
from tests.models.two_tower import examples

EXAMPLES = examples("user_tower", "user")
