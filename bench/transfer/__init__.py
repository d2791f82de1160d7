"""How the best learning rate moves when the model is widened or deepened."""
