"""One forward pass: how the rows of a call are taken apart."""

import torch
from torch.nn import Identity

from saliency.engine.call import make_call


def test_what_has_a_row_for_every_image_follows_it():
    images, labels, scale = torch.rand(2, 3, 4, 4), torch.tensor([5, 7]), torch.rand(4)
    call = make_call(Identity(), images, (labels, 3), {"scale": scale, "name": "x"}).rows(torch.tensor([1, 1, 0]))
    assert torch.equal(call.inputs[0], images[[1, 1, 0]])
    assert torch.equal(call.args[0], labels[[1, 1, 0]])
    assert call.args[1] == 3
    assert torch.equal(call.kwargs["scale"], scale)
    assert call.kwargs["name"] == "x"


def test_a_vector_of_one_entry_is_no_row_of_the_only_image():
    scale = torch.rand(1)
    call = make_call(Identity(), torch.rand(1, 3, 4, 4), scale).rows(torch.zeros(5, dtype=torch.long))
    assert call.inputs[0].shape == (5, 3, 4, 4)
    assert torch.equal(call.args[0], scale)


def test_nothing_is_shared_with_the_caller():
    image, scale = torch.rand(1, 3, 4, 4), torch.rand(2)
    call = make_call(Identity(), image, scale).rows(torch.tensor([0]))
    call.inputs[0].zero_()
    call.args[0].zero_()
    assert image.max() > 0
    assert scale.max() > 0


def test_the_label_of_the_only_image_is_a_row():
    call = make_call(Identity(), torch.rand(1, 3, 4, 4), torch.tensor([7])).rows(torch.zeros(5, dtype=torch.long))
    assert call.args[0].tolist() == [7] * 5
