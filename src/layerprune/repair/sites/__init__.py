"""Where a pruned model can be repaired: the layers whose weights reach a tensor linearly."""
