"""Textures for backgrounds and fills: a value in [0, 1] for every pixel, from a frozen random stream.

A texture is a function of the stream and of pixel coordinates x (1, w) and y (h, 1), with values (h, w).
Only IEEE-exact operations are used (no sin, cos, exp), so the values are the same on every machine.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float64]
Stream = np.random.RandomState
Texture = Callable[[Stream, Grid, Grid], Grid]


def uniform(stream: Stream, low: float, high: float) -> float:
    """Draw a number from [low, high)."""
    return low + (high - low) * float(stream.random_sample())


def integer(stream: Stream, low: int, high: int) -> int:
    """Draw an integer from low to high, inclusive."""
    return low + int((high - low + 1) * float(stream.random_sample()))


def rotation(stream: Stream) -> tuple[float, float]:
    """Draw (cosine, sine) of a rotation, from the rational parametrisation ((1 - t^2) / (1 + t^2), 2t / (1 + t^2))."""
    t = uniform(stream, -1.0, 1.0)
    sign = 1.0 if stream.random_sample() < 0.5 else -1.0
    norm = 1.0 + t * t
    return sign * (1.0 - t * t) / norm, sign * 2.0 * t / norm


def ramp(stream: Stream, x: Grid, y: Grid) -> Grid:
    """Linear gradient across the frame, mirrored and repeated."""
    cosine, sine = rotation(stream)
    return _triangle_wave((cosine * x + sine * y) / uniform(stream, 80.0, 200.0) + uniform(stream, 0.0, 1.0))


def clouds(stream: Stream, x: Grid, y: Grid) -> Grid:
    """Smooth noise in three octaves."""
    cell = uniform(stream, 10.0, 36.0)
    value = 0.6 * _noise(stream, x, y, cell)
    value = value + 0.27 * _noise(stream, x, y, cell / 2.0)
    return value + 0.13 * _noise(stream, x, y, cell / 4.0)


def patches(stream: Stream, x: Grid, y: Grid) -> Grid:
    """Noise cut into three levels, like camouflage."""
    value = clouds(stream, x, y)
    return 0.5 * (value > 0.42) + 0.5 * (value > 0.56)


def grain(stream: Stream, x: Grid, y: Grid) -> Grid:
    """Fine noise with a scale of a few pixels."""
    return _noise(stream, x, y, uniform(stream, 1.2, 4.0))


def stripes(stream: Stream, x: Grid, y: Grid) -> Grid:
    """Stripes with soft or sharp edges, slightly bent by noise."""
    cosine, sine = rotation(stream)
    sharpness = uniform(stream, 1.0, 5.0)
    bend = uniform(stream, 0.0, 1.2) * _noise(stream, x, y, 24.0)
    wave = _triangle_wave((cosine * x + sine * y) / uniform(stream, 5.0, 18.0) + bend)
    return np.minimum(np.maximum(0.5 + sharpness * (wave - 0.5), 0.0), 1.0)


def bricks(stream: Stream, x: Grid, y: Grid) -> Grid:
    """Long bricks, every second row shifted by half a brick."""
    cosine, sine = rotation(stream)
    height = uniform(stream, 4.0, 9.0)
    along, up = (cosine * x + sine * y) / (height * uniform(stream, 2.2, 3.5)), (cosine * y - sine * x) / height
    row = np.floor(up)
    along = along + 0.5 * (row - 2.0 * np.floor(row / 2.0))
    joint = (up - row < 0.18) | (along - np.floor(along) < 0.07)
    tint = _lattice(stream, np.floor(along), row)
    return np.where(joint, 1.0, 0.45 * tint)


def mosaic(stream: Stream, x: Grid, y: Grid) -> Grid:
    """Voronoi cells of random points, each with its own value."""
    left, top, width, height = float(x.min()), float(y.min()), float(np.ptp(x)), float(np.ptp(y))
    nearest, value = np.full((y.size, x.size), np.inf), np.zeros((y.size, x.size))
    for _ in range(integer(stream, 6, 16)):
        across, down = x - (left + width * stream.random_sample()), y - (top + height * stream.random_sample())
        distance = across * across + down * down
        value = np.where(distance < nearest, float(stream.random_sample()), value)
        nearest = np.minimum(nearest, distance)
    return value


def _triangle_wave(phase: Grid) -> Grid:
    return np.abs(2.0 * (phase - np.floor(phase)) - 1.0)


def _lattice(stream: Stream, column: Grid, row: Grid) -> Grid:
    """Look up a random value for every integer point; the table repeats every 32 points."""
    table = stream.random_sample((32, 32))
    values: Grid = table[row.astype(np.int64) & 31, column.astype(np.int64) & 31]
    return values


def _noise(stream: Stream, x: Grid, y: Grid, cell: float) -> Grid:
    """Smoothly interpolate random values on a lattice of the given cell size."""
    table = stream.random_sample((32, 32))
    x, y = x / cell + 8.0, y / cell + 8.0
    left, top = np.floor(x), np.floor(y)
    across, down = x - left, y - top
    across, down = across * across * (3.0 - 2.0 * across), down * down * (3.0 - 2.0 * down)
    column, row = left.astype(np.int64), top.astype(np.int64)
    c0, c1, r0, r1 = column & 31, (column + 1) & 31, row & 31, (row + 1) & 31
    above = table[r0, c0] + across * (table[r0, c1] - table[r0, c0])
    below = table[r1, c0] + across * (table[r1, c1] - table[r1, c0])
    value: Grid = above + down * (below - above)
    return value


TEXTURES: tuple[Texture, ...] = (ramp, clouds, patches, grain, stripes, bricks, mosaic)
