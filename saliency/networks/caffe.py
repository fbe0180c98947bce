"""VGG-16 and ResNet-50 trained in Caffe on VOC and COCO, as TorchRay publishes them for the pointing game.

Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV 2018; Fong et al., TorchRay, 2019.
"""

import re
from typing import NamedTuple

from torch import Tensor, nn

from saliency.networks.class_names import COCO_CLASSES, VOC_CLASSES

PUBLISHED = "https://dl.fbaipublicfiles.com/torchray"
MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
STD = (1 / 255, 1 / 255, 1 / 255)


class CaffeArch(NamedTuple):
    """A published network: its classes, file, the layer of its last convolution and the least side of an input.

    VGG-16 halves five times, rounding up, and its classifier looks at windows of 7 x 7.
    """

    classes: tuple[str, ...]
    file: str
    layer: str
    min_size: int

    @property
    def url(self) -> str:
        """Where the weights are published."""
        return f"{PUBLISHED}/{self.file}"


CAFFE_ARCHS: dict[str, CaffeArch] = {
    "vgg16_voc": CaffeArch(VOC_CLASSES, "vgg16_voc-b050e8c3.pth.tar", "features.29", 193),
    "vgg16_coco": CaffeArch(COCO_CLASSES, "vgg16_coco-d82c8150.pth.tar", "features.29", 193),
    "resnet50_voc": CaffeArch(VOC_CLASSES, "resnet50_voc-9ca920d6.pth.tar", "layer4", 32),
    "resnet50_coco": CaffeArch(COCO_CLASSES, "resnet50_coco-e99468c5.pth.tar", "layer4", 32),
}


class CaffeVGG16(nn.Module):
    """VGG-16 whose classifier is convolutions: it slides over photos of any shape, with torchvision's layer names.

    Scores are (N, classes, h, w), one for each window of 7 x 7 features, or where ``pooled`` their mean (N, classes).
    """

    def __init__(self, classes: int, pooled: bool = True) -> None:
        from torchvision.models.vgg import cfgs, make_layers

        super().__init__()
        self.pooled = pooled
        self.features = make_layers(cfgs["D"])
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True
        self.classifier = nn.Sequential(
            *(nn.Conv2d(512, 4096, 7), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Conv2d(4096, 4096, 1), nn.ReLU(inplace=True), nn.Dropout()),
            nn.Conv2d(4096, classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to scores."""
        scores: Tensor = self.classifier(self.features(x))
        return scores.mean((2, 3)) if self.pooled else scores


class CaffeResNet50(nn.Module):
    """ResNet-50 as first published: a block's first convolution has the stride, and pooling rounds up.

    Layers have torchvision's names. Scores are (N, classes, 1, 1), or where ``pooled`` (N, classes).
    """

    def __init__(self, classes: int, pooled: bool = True) -> None:
        from torchvision.models import resnet50

        super().__init__()
        self.pooled = pooled
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        body = resnet50()
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        for layer in (self.layer2, self.layer3, self.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(2048, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to scores."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: Tensor = self.fc(self.avgpool(x))
        return scores.flatten(1) if self.pooled else scores


def caffe_network(arch: str, pooled: bool = True) -> nn.Module:
    """Return an untrained network of :data:`CAFFE_ARCHS`."""
    kind = CaffeVGG16 if arch.startswith("vgg16") else CaffeResNet50
    return kind(len(CAFFE_ARCHS[arch].classes), pooled)


def from_caffe(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a published file under the names and in the shapes of the network.

    In the file, VGG-16 has no dropout layers to count, a ResNet's normalisation is two layers (statistics, then scale)
    and the first layer takes blue, green, red. Linear layers become convolutions.
    """
    steps = {"classifier.2.": "classifier.3.", "classifier.4.": "classifier.6."}
    first, shapes = next(iter(network.state_dict())), {name: t.shape for name, t in network.state_dict().items()}
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"\b(bn\d|downsample\.\d)\.[01]\.", r"\1.", name)
        name = re.sub(r"^classifier\.[24]\.", lambda match: steps[match[0]], name)
        shape = shapes.get(name, tensor.shape)
        value = tensor.reshape(shape) if tensor.numel() == shape.numel() else tensor
        renamed[name] = value.flip(1) if name == first and value.ndim == 4 else value
    return renamed
