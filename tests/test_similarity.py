"""Similarities as targets: of embeddings wherever they are in an output, of many references at once, and of pairs."""

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency import METHODS, bilrp, cosine_similarity, dot_product, grad_cam, gradient, linear_approx
from saliency.similarity import ImageEncoder, embedding_of
from tests import cases
from tests.users.networks import Net, gradients, rand

pytestmark = cases.NOTICES  # of random networks some maps are zero
D, K = 5, 3


def encoder() -> Net:
    """A bias-free ReLU network: 12 x 10 pixels, a map of 6 x 5 at 'conv', an embedding of 5."""
    torch.manual_seed(0)
    return Net(
        lambda s, x: s.fc(s.mix(s.conv(x).relu()).relu().mean((2, 3))),
        conv=nn.Conv2d(3, 6, 3, 2, padding=1, bias=False),
        mix=nn.Conv2d(6, 8, 3, padding=1, bias=False),
        fc=nn.Linear(8, D, bias=False),
    )


def cosines(x: Tensor, references: Tensor) -> Tensor:
    """By the definition, in loops."""
    return torch.stack([torch.stack([a @ r / (a.norm() * r.norm()) for r in references]) for a in x])


# --- targets --------------------------------------------------------------------------------------------------------


def test_similarities_are_those_of_the_definition():
    x, references = rand(2, D) - 0.5, rand(K, D) - 0.5
    torch.testing.assert_close(cosine_similarity(references)(x), cosines(x, references))
    torch.testing.assert_close(cosine_similarity(references[0])(x), cosines(x, references)[:, 0])
    torch.testing.assert_close(dot_product(references)(x), (x[:, None] * references).sum(2))
    torch.testing.assert_close(dot_product(references[1])(x), (x * references[1]).sum(1))


def test_an_embedding_of_zeros_is_like_nothing():
    assert torch.equal(cosine_similarity(torch.ones(K, D))(torch.zeros(1, D)), torch.zeros(1, K))


@pytest.mark.parametrize("target", [cosine_similarity, dot_product])
def test_references_are_constants_in_the_precision_of_the_embedding(target):
    references = torch.rand(K, D, requires_grad=True)
    scores = target(references)(rand(2, D))
    assert scores.dtype == torch.float64
    assert not scores.requires_grad


@pytest.mark.parametrize("target", [cosine_similarity, dot_product])
def test_references_may_be_made_in_inference_mode_and_change_afterwards(target):
    model, x, references = encoder(), rand(1, 3, 12, 10), rand(K, D) - 0.5
    expected = gradient(model, x, target(references))
    with torch.inference_mode():
        made = references * 1
        inside = target(made)
        torch.testing.assert_close(gradient(model, x, inside), expected)
    outside = target(made)
    torch.testing.assert_close(gradient(model, x, outside), expected)
    later = target(references)
    references.zero_()
    torch.testing.assert_close(gradient(model, x, later), expected)


OUTPUTS = {
    "a tensor": lambda z, tokens: z,
    "a tuple": lambda z, tokens: (z, tokens),
    "a dict of open_clip": lambda z, tokens: {"text_features": tokens, "image_features": z},
    "fields of a projection": lambda z, tokens: SimpleNamespace(last_hidden_state=tokens, image_embeds=z),
    "a pooler": lambda z, tokens: namedtuple("Output", "last_hidden_state pooler_output")(tokens, z),
    "no pooler": lambda z, tokens: namedtuple("Output", "out pooler_output")(z, None),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_embedding_is_found_in_the_output(name):
    z, tokens = torch.rand(2, D), torch.rand(2, 7, D)
    assert embedding_of(OUTPUTS[name](z, tokens)) is z


@pytest.mark.parametrize("target", [cosine_similarity, dot_product])
@pytest.mark.parametrize("name", ["a dict of open_clip", "fields of a projection", "a pooler"])
def test_references_may_be_an_output_with_a_field_of_embeddings(target, name):
    x, references = rand(2, D), rand(K, D)
    given = OUTPUTS[name](references, rand(K, 7, D))
    torch.testing.assert_close(target(given)(x), target(references)(x))


def test_the_user_says_where_the_embedding_is():
    tokens, references = rand(2, 7, D), rand(K, D)
    target = cosine_similarity(references, embedding=lambda output: output["tokens"][:, 0])
    torch.testing.assert_close(target({"tokens": tokens}), cosines(tokens[:, 0], references))


# Of every kind of method the one that stands for it; and of the CAMs by scores.
METHOD_NAMES = [case.name for case in cases.GENERAL if case.stands_for_its_kind and case.uses_target]


@pytest.mark.parametrize("name", [*METHOD_NAMES, "score_cam"])
def test_many_references_at_once_are_one_each(name):
    model, x, references = encoder(), rand(2, 3, 12, 10), rand(K, D) - 0.5
    case = next(case for case in cases.METHOD_CASES if case.name == name)
    each = torch.cat([case(model, x, cosine_similarity(reference)) for reference in references], 1)
    torch.testing.assert_close(case(model, x, cosine_similarity(references)), each)


def test_the_gradient_of_a_similarity_and_of_what_is_made_of_them():
    model, x, (a, b) = encoder(), rand(2, 3, 12, 10), rand(2, D) - 0.5
    first, second = cosine_similarity(a), cosine_similarity(b)
    made = {
        first: lambda z: cosines(z, a[None]),
        (lambda output: first(output) - second(output)): lambda z: cosines(z, a[None]) - cosines(z, b[None]),
        (lambda output: 1 - first(output)): lambda z: 1 - cosines(z, a[None]),
    }
    for target, score in made.items():
        expected = gradients(lambda x, score=score: score(model(x)), x).abs().amax(1, keepdim=True)
        torch.testing.assert_close(gradient(model, x, target), expected)


def test_every_image_has_a_reference_of_its_own():
    model, x, references = encoder(), rand(2, 3, 12, 10), rand(2, D) - 0.5
    target = [cosine_similarity(reference) for reference in references]
    expected = torch.cat([gradient(model, x[i : i + 1], cosine_similarity(references[i])) for i in range(2)])
    torch.testing.assert_close(gradient(model, x, target), expected)


@pytest.mark.parametrize(
    ("references", "problem"),
    [
        ([[1.0]], r"are not embeddings; expected a tensor \(D,\) or \(K, D\)"),
        ([torch.ones(D)], r"are not embeddings; expected a tensor"),  # the first of several would be a guess
        ({"logits": torch.ones(D)}, r"are not embeddings; expected a tensor"),
        ({"pooler_output": torch.ones(2, 2, D)}, r"are not embeddings; expected a tensor"),
        (torch.ones(2, 2, D), r"are not embeddings; expected a tensor"),
        (torch.ones(D, dtype=torch.long), r"are not embeddings; expected a tensor"),
        (torch.ones(K, D + 1), rf"do not fit an embedding that is a tensor of shape \(2, {D}\)"),
    ],
)
def test_references_that_do_not_fit_raise_one_clear_error(references: Any, problem: str):
    with pytest.raises(ValueError, match=rf"references=.*{problem}"):
        gradient(encoder(), rand(2, 3, 12, 10), cosine_similarity(references))


@pytest.mark.parametrize("target", [cosine_similarity, dot_product])
def test_an_embedding_that_is_none_raises_one_clear_error(target):
    with pytest.raises(ValueError, match=r"^embedding='pooler_output' is not a function; expected"):
        target(torch.ones(D), "pooler_output")
    with pytest.raises(ValueError, match=r"^references=.* do not fit an embedding that is a dict; expected \(N, D\)"):
        target(torch.ones(D))({"tokens": torch.ones(2, D)})


# --- models of images and texts -------------------------------------------------------------------------------------


class OpenClip(nn.Module):
    """The interface of open_clip: a method for each half, and a tower for each."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.text = encoder(), nn.Embedding(10, D).double()

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        return F.normalize(self.visual(image), dim=-1) if normalize else self.visual(image)

    def encode_text(self, text: Tensor) -> Tensor:
        return self.text(text).mean(1)


def test_the_image_half_of_a_model_of_images_and_texts():
    model, x = OpenClip(), rand(2, 3, 12, 10)
    target = cosine_similarity(model.encode_text(torch.tensor([[1, 2], [3, 4], [5, 6]])))
    maps = grad_cam(ImageEncoder(model), x, target)
    assert maps.shape == (2, 3, 6, 5)
    assert torch.equal(maps, grad_cam(model.visual, x, target, "mix"))
    unit = grad_cam(ImageEncoder(model), x, target, forward_kwargs={"normalize": True})
    torch.testing.assert_close(unit, maps)  # a cosine is that of any length
    with pytest.raises(ValueError, match=r"^model=a Linear has no method get_image_features or encode_image; expected"):
        ImageEncoder(nn.Linear(2, 2))


def test_the_image_half_gives_the_embedding_whatever_it_is_in():
    """The method of CLIP in transformers 5 returns an output, in which the pooled state has become the embedding."""

    class Clip(OpenClip):
        def encode_image(self, image: Tensor) -> Any:
            return {"last_hidden_state": image, "pooler_output": self.visual(image)}

    model, x = Clip(), rand(2, 3, 12, 10)
    assert torch.equal(ImageEncoder(model)(x), model.visual(x))
    assert torch.equal(grad_cam(ImageEncoder(model), x, 1), grad_cam(model.visual, x, 1, "mix"))


def hugging_face(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    blocks = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**blocks, "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    image = {**blocks, "image_size": 32, "patch_size": 8}
    extra = {"projection_dim": 16} if name == "CLIP" else {}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=image, **extra)
    return getattr(transformers, f"{name}Model")(config).eval()


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
@pytest.mark.parametrize("method", [gradient, grad_cam])
def test_prompts_of_hugging_face_from_one_forward_pass(name, method):
    model, x, tokens = hugging_face(name), torch.rand(2, 3, 32, 32), torch.randint(3, 50, (K, 8))
    with torch.no_grad():
        text = model.get_text_features(input_ids=tokens)  # a tensor, or as of transformers 5 an output that holds it
        logits = model(input_ids=tokens, pixel_values=x).logits_per_image
    images, runs = ImageEncoder(model), []
    similarities = cosine_similarity(text)(images(x))
    scaled = similarities * model.logit_scale.exp() + getattr(model, "logit_bias", 0)
    torch.testing.assert_close(scaled, logits)
    alone = [method(images, x, cosine_similarity(prompt)) for prompt in embedding_of(text)]
    layer = "" if method is gradient else saliency.find_layer(images, x, target=cosine_similarity(text))
    handle = model.vision_model.register_forward_hook(lambda *_: runs.append(1))
    maps = method(images, x, cosine_similarity(text), layer)
    handle.remove()
    assert len(runs) == 1
    assert maps.shape == ((2, K, 32, 32) if method is gradient else (2, K, 4, 4))
    torch.testing.assert_close(maps, torch.cat(alone, 1))


@pytest.mark.zoo
@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "SiglipVisionModel"])
def test_image_encoders_of_hugging_face_are_models_as_they_are(kind):
    transformers = pytest.importorskip("transformers")
    blocks = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {**blocks, "image_size": 32, "patch_size": 8} | ({"projection_dim": 16} if "CLIP" in kind else {})
    model = getattr(transformers, kind)(getattr(transformers, kind).config_class(**config)).double().eval()
    x, reference = rand(2, 3, 32, 32), rand(16 if "CLIP" in kind else 32)
    expected = gradients(lambda x: cosines(model(pixel_values=x)[0 if "CLIP" in kind else 1], reference[None]), x)
    torch.testing.assert_close(gradient(model, x, cosine_similarity(reference)), expected.abs().amax(1, keepdim=True))


@pytest.mark.zoo
def test_a_transformer_of_timm_without_a_head_embeds_images():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 0}
    model = timm.models.VisionTransformer(**options).double().eval()
    x, references = rand(2, 3, 32, 32), rand(K, 32) - 0.5
    each = torch.cat([grad_cam(model, x, cosine_similarity(reference)) for reference in references], 1)
    torch.testing.assert_close(grad_cam(model, x, cosine_similarity(references)), each)


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_pairs_are_those_of_the_paper_in_loops():
    """Every entry of the embedding is explained by itself; a pair is a sum of products, a cell a sum of pixels."""
    model, a, b = encoder(), rand(1, 3, 12, 10), rand(1, 3, 12, 10)
    expected = torch.zeros(3, 4, 3, 4, dtype=torch.float64)
    for k in range(D):
        first, second = ((x * gradients(lambda x, k=k: model(x)[:, k], x)).sum(1)[0] for x in (a, b))
        for i in range(12):
            for j in range(10):
                for u in range(12):
                    for v in range(10):
                        expected[i * 3 // 12, j * 4 // 10, u * 3 // 12, v * 4 // 10] += first[i, j] * second[u, v]
    torch.testing.assert_close(bilrp(model, a, b, linear_approx, pool=(3, 4))[0], expected)


@pytest.mark.parametrize("layer", ["", "conv", None])
@pytest.mark.parametrize("pool", [1, 4, 100])
def test_pairs_sum_to_the_similarity(layer, pool):
    model, a, b = encoder(), rand(2, 3, 12, 10) - 0.5, rand(2, 3, 12, 10) - 0.5
    pairs = bilrp(model, a, b, linear_approx, layer, pool)
    height, width = (min(pool, side) for side in ((12, 10) if layer == "" else (6, 5)))
    assert pairs.shape == (2, height, width, height, width)
    torch.testing.assert_close(pairs.flatten(1).sum(1), (model(a) * model(b)).sum(1), rtol=1e-9, atol=1e-12)


def test_pairs_by_any_method_and_images_of_two_sizes():
    model, a, b = encoder(), rand(2, 3, 12, 10), rand(2, 3, 8, 16)
    pairs = bilrp(model, a, b, METHODS["integrated_gradients"].function, pool=2, n_steps=64)
    assert pairs.shape == (2, 2, 2, 2, 2)
    # From zeros, where the embedding is 0, along a line on which a bias-free ReLU network is linear.
    torch.testing.assert_close(pairs.flatten(1).sum(1), (model(a) * model(b)).sum(1), rtol=1e-9, atol=1e-12)


def test_pairs_of_one_image_with_itself_are_symmetric():
    x = rand(1, 3, 12, 10)
    pairs = bilrp(encoder(), x, x, linear_approx, pool=3)
    torch.testing.assert_close(pairs, pairs.permute(0, 3, 4, 1, 2))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"second": torch.zeros(2, 3, 12, 10)}, r"second=a tensor of shape \(2, 3, 12, 10\) cannot be paired"),
        ({"second": None}, r"second=None is not a tensor"),
        ({"pool": 0}, r"pool=0 is not a number of cells; expected"),
        ({"pool": (2,)}, r"pool=\(2,\) is not a number of cells; expected"),
        ({"method": "lrp"}, r"method='lrp' is not a method; expected"),
    ],
)
def test_pairs_that_cannot_be_made_raise_one_clear_error(changed: dict[str, Any], problem: str):
    given = {"first": rand(1, 3, 12, 10), "second": rand(1, 3, 12, 10), "method": linear_approx} | changed
    with pytest.raises(ValueError, match=f"^{problem}"):
        bilrp(encoder(), **given)
