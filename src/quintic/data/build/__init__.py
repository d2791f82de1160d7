"""Text to shards: reading documents, tokenizing them, and writing a dataset."""
