"""Networks: by name or of one's own, what they expect of a photo, and their classes."""
