"""Networks: by name or your own, the preprocessing that they expect, and their classes."""
