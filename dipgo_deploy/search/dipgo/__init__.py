"""The gradient search of DiP-GO: train a pruner, cut its scores at a ratio, polish the result."""
