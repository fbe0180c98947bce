"""HOW: the machinery that attaches probes, runs the model and shapes maps. It knows no method."""
