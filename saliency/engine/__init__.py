"""The machinery: attach probes, run the model, shape the maps. It knows no method."""
