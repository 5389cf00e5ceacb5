"""The care of a store: what it holds, whether it is sound, and what may go."""
