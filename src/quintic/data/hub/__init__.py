"""Ready-made shards from a hub or the web, and datasets to a hub."""
