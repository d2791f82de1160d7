"""Standard tasks: multiple choice, minimal pairs and last words, scored as lm-eval scores them."""
