"""How good a saliency method is: networks, data sets, measures. Nothing here knows a method; methods are given."""
