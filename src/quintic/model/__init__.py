"""Token ids to loss: the two architectures and the cross-entropy."""
