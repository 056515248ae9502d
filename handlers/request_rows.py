"""What a request's row may hold besides feature values: its keys, and the limits of ``top_k``.

Imports nothing, so that the sidecar can use it as well.
"""

QUERY_FEATURES_KEY = "query_features"
USER_FEATURES_KEY = "user_features"
HISTORY_KEY = "history_item_ids"

DEFAULT_TOP_K = 20
MAX_TOP_K = 500
