"""The built-in data, without downloads: generated scenes with exact masks, and two networks trained on them."""

from .generator import CLASSES, Scene, SceneObject, make_scene, make_scenes
from .network import SceneNet, SceneTransformer, scene_network

__all__ = [
    "CLASSES",
    "Scene",
    "SceneNet",
    "SceneObject",
    "SceneTransformer",
    "make_scene",
    "make_scenes",
    "scene_network",
]
