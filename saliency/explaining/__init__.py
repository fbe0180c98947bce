"""From a photo to a picture: what a network sees in it, by several methods, in one call."""

from saliency.explaining.columns import Column, Score
from saliency.explaining.entry import compare, explain
from saliency.explaining.explanation import Explanation

__all__ = ["Column", "Explanation", "Score", "compare", "explain"]
