"""Keys that a request's row may have in addition to the names of features."""

QUERY_FEATURES_KEY = "query_features"
USER_FEATURES_KEY = "user_features"
HISTORY_KEY = "history_item_ids"
