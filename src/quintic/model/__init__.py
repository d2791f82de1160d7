"""The two architectures and the cross-entropy: from token ids to the loss."""
