"""What is valid: the rules of a metric, a batch and a user. Nothing here stores anything."""
