"""Calls: a model with what it is called with, and the rows of its batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from saliency.engine.checks import describe, shown
from saliency.engine.interrupts import interruptible
from saliency.engine.layers import unwrap
from saliency.engine.notices import Notices
from saliency.engine.state import model_device, model_dtype, modules_of, own_copy

Input: TypeAlias = Tensor | tuple[Tensor, ...]
_WEIGHTED = (_ConvNd, torch.nn.Linear, torch.nn.Embedding, torch.nn.RNNBase)


@dataclass(frozen=True, eq=False)
class Call:
    """A model and what it is called with: the explained inputs first, then what else reaches its ``forward``."""

    model: Module
    inputs: tuple[Tensor, ...]
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    notices: Notices = field(default_factory=Notices)  # one for all calls that are made of this one

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """Every module of the model: the tree is walked once a call."""
        return modules_of(self.model)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter of the model; one that is shared may be there twice."""
        return tuple(p for module in self.modules for p in module._parameters.values() if p is not None)

    @property
    def samples(self) -> int:
        """The number of samples in the batch."""
        return len(self.inputs[0])

    @property
    def image_at(self) -> int:
        """Which of the inputs is the image: the first with positions, else the first."""
        return next((at for at, tensor in enumerate(self.inputs) if tensor.ndim > 2), 0)

    @property
    def image(self) -> Tensor:
        """The image."""
        return self.inputs[self.image_at]

    @cached_property
    def stem(self) -> tuple[int, int]:
        """How many channels and axes the model's first convolution takes; (0, 0) where other weights come first."""
        first = next((module for module in self.modules if isinstance(module, _WEIGHTED)), None)
        return (first.in_channels, len(first.kernel_size)) if isinstance(first, _ConvNd) else (0, 0)

    def is_clip(self, image: Tensor) -> bool:
        """Is this (B, T, C, H, W), frame by frame, and no volume? The channels of the first convolution tell."""
        channels, axes = self.stem
        return image.ndim == 5 and image.shape[2] == channels and (axes == 2 or image.shape[1] != channels)

    @property
    def volume(self) -> Tensor:
        """The image with its channels in front of all axes: of a clip (B, C, T, H, W)."""
        return self.image.transpose(1, 2) if self.is_clip(self.image) else self.image

    def frames_of(self, maps: Tensor) -> Tensor:
        """Maps of the image's axes: of a clip (B, 1, T, h, w) as (B, T, h, w)."""
        return maps.squeeze(1) if self.is_clip(self.image) and maps.shape[1] == 1 else maps

    def image_of(self, rows: int | None = None) -> Tensor:
        """The image that a layer of so many rows looks at, or the first convolution.

        Of a clip (B, T, C, H, W) that is its frames (B * T, C, H, W), or all of them at once, (B, C, T, H, W).
        """
        image = self.image
        by_frame = self.is_clip(image) and self.stem[1] == 2
        if image.ndim == 5 and (by_frame if rows in (None, len(image)) else rows == len(image) * image.shape[1]):
            return image.flatten(0, 1)
        return self.volume

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype: that of its first floating-point parameter, or else of the first input."""
        return model_dtype(self.model, self.inputs[0])

    def run(self) -> Any:
        """The model's output. Raises ``ValueError`` for a batch that an exported program was not made for, and for
        a model a part of which was built inside ``inference_mode``.
        """
        try:
            with interruptible():
                return self.model(*self.inputs, *self.args, **self.kwargs)
        except RuntimeError as error:
            if not str(error).startswith("Inference tensors cannot be saved for backward"):
                raise
            raise _built_in_inference(self.model) from error
        except AssertionError as error:
            if not str(error).startswith("Guard failed"):
                raise
            raise ValueError(
                f"model={type(self.model).__name__} is an exported program and refuses {self.samples} samples at once "
                f"({error}); expected dynamic_shapes of the batch in torch.export.export, or chunks of its size."
            ) from error

    def own(self) -> "Call":
        """The call with copies of its tensors, which the model may overwrite."""
        return self.mapped(own_copy)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Call":
        """The call with what a function makes of each of its tensors."""
        inputs = tuple(map(function, self.inputs))
        args, kwargs = tree_map_only(Tensor, function, (self.args, dict(self.kwargs)))
        return replace(self, inputs=inputs, args=args, kwargs=kwargs)

    def rows(self, index: Tensor) -> "Call":
        """The call with the rows of its batch in the order of ``index``; nothing of it is shared with the caller.

        Tensors of as many rows as the input has go along, all others stay as they are; so does a vector of one float.
        """
        samples = self.inputs[0].shape[:1]

        def take(tensor: Tensor) -> Tensor:
            single = tensor.shape == (1,) and tensor.is_floating_point()  # a factor, not one image's label
            along = tensor.shape[:1] == samples and not single
            return tensor.detach()[index.to(tensor.device)] if along else own_copy(tensor)

        return self.mapped(take)

    def replacing(self, tensors: Mapping[int, Tensor], index: Tensor) -> "Call":
        """As :meth:`rows`, with other ``tensors`` in place of the inputs at their positions.

        >>> call = make_call(torch.nn.Identity(), torch.zeros(2, 1))
        >>> call.replacing({0: torch.ones(3, 1)}, torch.tensor([0, 0, 1])).run().flatten()
        tensor([1., 1., 1.])
        """
        others = tuple(x.new_empty(len(x), 0) if at in tensors else x for at, x in enumerate(self.inputs))
        call = replace(self, inputs=others).rows(index)  # what is replaced need not be copied
        return replace(call, inputs=tuple(tensors.get(at, x) for at, x in enumerate(call.inputs)))


def check_inputs(input: object) -> tuple[Tensor, ...]:
    """The tensors of an input. Raises ``ValueError`` for an input that is no batch of tensors."""
    inputs = tuple(input) if isinstance(input, (tuple, list)) else (input,)
    if not inputs or not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise ValueError(
            f"input={type(input).__name__} is not a tensor; expected a tensor (N, C, H, W) or a tuple of tensors, what "
            "else the model takes as additional_forward_args or forward_kwargs, and for a model of dicts or nested "
            "lists a Module that builds them from tensors."
        )
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
    if any(tensor.ndim < (2 if tensor.is_floating_point() else 1) for tensor in inputs):
        raise _no_batch(shapes)
    if not all(map(len, inputs)):
        raise ValueError(f"input={shapes} is not a batch of samples; expected a tensor (N, C, H, W) with N > 0.")
    if any(tensor.dtype == torch.uint8 and tensor.ndim > 2 for tensor in inputs):
        raise ValueError(
            "input=torch.uint8 is an image of bytes; expected floating-point values on the scale that the model was "
            "trained on, such as x.float() / 255."
        )
    return inputs


def _no_batch(shape: object) -> ValueError:
    return ValueError(f"input={shape} has no batch axis; expected (N, C, H, W), for one image x[None].")


def _check_image(call: Call) -> None:
    """Raise ``ValueError`` for an image that the model cannot take: without a batch axis, or on another device."""
    shape, (channels, axes) = tuple(call.image.shape), call.stem
    if len(shape) == axes + 1 and shape[0] == channels > 1:
        raise _no_batch(shape)
    device = model_device(call.model)
    for tensor in call.inputs:
        devices = {device} if tensor.device == device else {parameter.device for parameter in call.parameters}
        if devices and tensor.device not in devices:
            raise ValueError(
                f"input={describe(tensor)} is on {tensor.device}, the model on {device}; expected both on one device."
            )


def _built_in_inference(model: Module) -> ValueError:
    return ValueError(
        f"model={type(model).__name__} was built inside inference_mode, which rules out gradients; expected a model "
        "built outside, which may be explained inside."
    )


def check_parameters(call: Call, grad: bool) -> None:
    """Raise ``ValueError`` for a model that cannot run, or, with ``grad``, that can have no gradients."""
    lazy = any(issubclass(kind, LazyModuleMixin) for kind in set(map(type, call.modules)))
    if lazy and any(map(is_lazy, call.parameters)):
        raise ValueError(f"model={type(call.model).__name__} has lazy parameters; expected a model that ran once.")
    first = next(call.model.parameters(), None)  # those of a model are built together
    if grad and first is not None and first.is_inference():
        raise _built_in_inference(call.model)


def make_call(
    model: Module, input: object, additional_forward_args: object = None, forward_kwargs: object = None
) -> Call:
    """Check what reaches the model. Raises ``ValueError`` for what is no model, or no batch of tensors."""
    model, inputs, extra = unwrap(model), check_inputs(input), additional_forward_args
    args = () if extra is None else tuple(extra) if isinstance(extra, (tuple, list)) else (extra,)
    if not isinstance(forward_kwargs, (Mapping, type(None))):
        raise ValueError(
            f"forward_kwargs={shown(forward_kwargs)} is not a mapping; expected a dict of keyword arguments."
        )
    call = Call(model, inputs, args, dict(forward_kwargs or {}), Notices(model))
    _check_image(call)
    return call
