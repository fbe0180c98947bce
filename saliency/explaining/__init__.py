"""From a photo to a picture: what a network sees in it, by several methods, in one call."""

from saliency.explaining.entry import compare, explain
from saliency.explaining.explanation import Column, Explanation

__all__ = ["Column", "Explanation", "compare", "explain"]
