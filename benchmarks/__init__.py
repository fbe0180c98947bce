"""Scripts that measure: speed, and how good the maps are. Run them as ``python -m benchmarks.<name>``."""
