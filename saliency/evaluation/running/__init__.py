"""Running a benchmark: planned, shared among processes, resumed, every result on disk at once."""
