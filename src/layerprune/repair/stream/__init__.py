"""Both models run in lockstep on all batches and pause at each tensor that can be repaired."""
