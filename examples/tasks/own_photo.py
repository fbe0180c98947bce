"""Your own photo: what in it speaks for the class?

Here a scene is saved as a file, and stands for the photo.
"""

from saliency import grad_cam
from saliency.images import overlay, read_image, resize_image, write_png
from saliency.scenes import make_scene, scene_network

write_png(make_scene(1).image, "photo.png")
