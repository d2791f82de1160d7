"""Text to batches: tokenizer, shards, dataset, embedded corpus, loader."""
