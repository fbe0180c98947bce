"""What users meet: the right value, or one clear error, for each kind of model and input that was seen to go wrong."""
