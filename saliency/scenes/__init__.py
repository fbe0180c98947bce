"""The embedded default, without downloads: generated scenes with exact masks, and a network that knows them."""

from .generator import CLASSES, Scene, SceneObject, make_scene, make_scenes
from .network import SceneNet, scene_network

__all__ = ["CLASSES", "Scene", "SceneNet", "SceneObject", "make_scene", "make_scenes", "scene_network"]
