"""Find the items that a user chooses, by the features of both."""
