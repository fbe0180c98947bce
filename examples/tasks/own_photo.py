"""Your own photo: what in it speaks for the class that the network names?

With ARCH = "resnet50" and a photo of yours, torchvision's weights are downloaded once.
"""

from saliency import grad_cam
from saliency.images import overlay, read_image, write_png
from saliency.networks.models import load_network, preprocessing
from saliency.networks.preprocessing import preprocess
from saliency.scenes import make_scene

ARCH, PHOTO = "scenes", "photo.png"
write_png(make_scene(9).image, PHOTO)  # a scene stands for the photo

model, wanted = load_network(ARCH, "DEFAULT"), preprocessing(ARCH)
photo = read_image(PHOTO)
x = preprocess(photo, wanted)[None]
target = int(model(x).argmax())
saliency_map = grad_cam(model, x, target)
print(f"{wanted.classes[target]}, class {target}")
write_png(overlay(photo, saliency_map), "own_photo.png")
