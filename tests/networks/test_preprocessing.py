"""From a photo to the input of a network."""

import pytest
import torch

from saliency.images import normalise, resize_image
from saliency.networks.models import Preprocessing, preprocessing
from saliency.networks.preprocessing import input_size, preprocess

PLAIN = Preprocessing(24, 1, False, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), ())
CAFFE = PLAIN._replace(caffe_resize=True)


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (24, 24), (7, 90), (33, 34), (3, 1000), (1, 1)])
@pytest.mark.parametrize("wanted", [PLAIN, CAFFE, PLAIN._replace(square=True)], ids=["plain", "caffe", "square"])
def test_the_size_is_known_beforehand(size, wanted):
    assert preprocess(torch.rand(3, *size), wanted).shape == (3, *input_size(size, wanted))


def test_sizes():
    assert input_size((30, 41), PLAIN) == (24, 33)  # 32.8
    assert input_size((30, 41), CAFFE) == (24, 32)
    assert input_size((41, 30), CAFFE) == (32, 24)
    assert input_size((3, 1000), CAFFE) == (24, 192)
    assert input_size((480, 640), preprocessing("vgg16_voc")) == (224, 298)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"image='photo\.jpg' is not a tensor"):
        preprocess("photo.jpg", PLAIN)
    with pytest.raises(ValueError, match=r"wanted=.*; expected preprocessing\(name\)"):
        preprocess(torch.rand(3, 30, 41), (PLAIN, "its source"))


def test_as_the_command_line_does():
    image = torch.rand(3, 30, 41)
    assert torch.equal(preprocess(image, PLAIN), normalise(resize_image(image, 24), PLAIN.mean, PLAIN.std))


def test_caffe_samples_four_neighbours():
    """Bilinear without antialiasing: output pixel i looks at i * scale + (scale - 1) / 2, here between two pixels."""
    image = torch.rand(3, 96, 96)
    middle = (image[:, 1::4, 1::4] + image[:, 2::4, 1::4] + image[:, 1::4, 2::4] + image[:, 2::4, 2::4]) / 4
    torch.testing.assert_close(preprocess(image, CAFFE), normalise(middle, CAFFE.mean, CAFFE.std))
