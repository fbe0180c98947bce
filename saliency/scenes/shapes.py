"""Shapes as sets of points: the eight classes, and distractors that belong to none of them.

A shape is a function of coordinates (u, v) in its own frame, True inside; it fits in the unit circle.
Only IEEE-exact operations are used (no sin, cos, exp), so the same points are inside on every machine.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float64]
Inside = NDArray[np.bool_]
Shape = Callable[[Grid, Grid], Inside]

# The five tips of a regular star: cosine and sine of 90, 18, -54, -126 and -198 degrees.
_TIPS = (
    (0.0, 1.0),
    (0.9510565162951535, 0.3090169943749474),
    (0.5877852522924731, -0.8090169943749475),
    (-0.5877852522924731, -0.8090169943749475),
    (-0.9510565162951535, 0.3090169943749474),
)
_SQRT_3 = 1.7320508075688772


def circle(u: Grid, v: Grid) -> Inside:
    """Disc of radius 0.9."""
    return u * u + v * v <= 0.81


def square(u: Grid, v: Grid) -> Inside:
    """Square of half side 0.7."""
    return np.maximum(np.abs(u), np.abs(v)) <= 0.7


def triangle(u: Grid, v: Grid) -> Inside:
    """Equilateral triangle inscribed in the unit circle."""
    return (v >= -0.5) & (v <= 1.0 - _SQRT_3 * np.abs(u))


def star(u: Grid, v: Grid) -> Inside:
    """Five-pointed star: points on the inner side of at least four of its five lines."""
    sides = np.zeros(u.shape, np.int64)
    for x, y in _TIPS:
        sides = sides + (x * u + y * v <= 0.3090169943749474)
    return sides >= 4


def cross(u: Grid, v: Grid) -> Inside:
    """Two equal bars at a right angle."""
    a, b = np.abs(u), np.abs(v)
    return (np.maximum(a, b) <= 0.9) & (np.minimum(a, b) <= 0.28)


def ring(u: Grid, v: Grid) -> Inside:
    """Annulus between the radii 0.55 and 1."""
    square_radius = u * u + v * v
    return (square_radius >= 0.3025) & (square_radius <= 1.0)


def crescent(u: Grid, v: Grid) -> Inside:
    """Unit disc minus a smaller disc that overlaps its edge."""
    away = u - 0.42
    return (u * u + v * v <= 1.0) & (away * away + v * v >= 0.64)


def heart(u: Grid, v: Grid) -> Inside:
    """Square standing on a corner, with a half disc on each of its upper sides and a notch between them."""
    across, up = np.abs(u), v + 0.1
    lobe_u, lobe_v = across - 0.35, up - 0.35
    whole = (across + np.abs(up) <= 0.7) | (lobe_u * lobe_u + lobe_v * lobe_v <= 0.245)
    return whole & (up <= 0.33 + 2.4 * across)


def bar(u: Grid, v: Grid) -> Inside:
    """Thin straight line."""
    return (np.abs(u) <= 1.0) & (np.abs(v) <= 0.08)


def ellipse(u: Grid, v: Grid) -> Inside:
    """Long ellipse, three times as long as wide."""
    return u * u + 9.0 * v * v <= 1.0


def elbow(u: Grid, v: Grid) -> Inside:
    """Two thin bars that meet at one end."""
    inner = (u >= -0.5) & (v >= -0.5)
    return (u >= -0.65) & (v >= -0.65) & (np.maximum(u, v) <= 0.65) & ~inner


def zigzag(u: Grid, v: Grid) -> Inside:
    """Thin line that rises and falls twice."""
    phase = 2.0 * u - np.floor(2.0 * u)
    wave = np.abs(phase - 0.5) - 0.25
    return (np.abs(u) <= 0.95) & (np.abs(v - wave) <= 0.11)


def shard(u: Grid, v: Grid) -> Inside:
    """Needle: a triangle five times as long as wide."""
    return (u >= -1.0) & (np.abs(v) <= 0.1 * (1.0 - u))


OBJECTS: Mapping[str, Shape] = MappingProxyType(
    {
        "circle": circle,
        "square": square,
        "triangle": triangle,
        "star": star,
        "cross": cross,
        "ring": ring,
        "crescent": crescent,
        "heart": heart,
    }
)
DISTRACTORS: tuple[Shape, ...] = (bar, ellipse, elbow, zigzag, shard)
