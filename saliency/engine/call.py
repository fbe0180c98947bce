"""Calls: a model with its arguments, and selected rows of the batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

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
from saliency.engine.outputs import Output
from saliency.engine.state import model_device, model_dtype, modules_of, own_copy, rows_at

Input: TypeAlias = Tensor | tuple[Tensor, ...]
_WEIGHTED = (_ConvNd, torch.nn.Linear, torch.nn.Embedding, torch.nn.RNNBase)


@dataclass(frozen=True, eq=False)
class Call:
    """A model with its arguments: the explained inputs first, then everything else that its ``forward`` is given."""

    model: Module
    inputs: tuple[Tensor, ...]
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    notices: Notices = field(default_factory=Notices)  # shared by all calls derived from this one

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """Every module of the model; the tree is walked once per call."""
        return modules_of(self.model)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter of the model; a tied one may be listed twice."""
        return tuple(p for module in self.modules for p in module._parameters.values() if p is not None)

    @cached_property
    def state(self) -> tuple[Tensor, ...]:
        """Every parameter and buffer; a tied one may be listed twice."""
        buffers = (b for module in self.modules for b in module._buffers.values() if b is not None)
        return (*self.parameters, *buffers)

    @property
    def samples(self) -> int:
        """The number of samples in the batch."""
        return len(self.inputs[0])

    @property
    def image_at(self) -> int:
        """The index of the input that is the image: the first with spatial axes, else the first."""
        return next((at for at, tensor in enumerate(self.inputs) if tensor.ndim > 2), 0)

    @property
    def image(self) -> Tensor:
        """The image."""
        return self.inputs[self.image_at]

    @cached_property
    def stem(self) -> tuple[int, int]:
        """Input channels and spatial axes of the model's first convolution; (0, 0) if its first weights are not a
        convolution's.
        """
        first = next((module for module in self.modules if isinstance(module, _WEIGHTED)), None)
        return (first.in_channels, len(first.kernel_size)) if isinstance(first, _ConvNd) else (0, 0)

    def is_clip(self, image: Tensor) -> bool:
        """Is this a clip (B, T, C, H, W), rather than a volume? The channels of the first convolution decide."""
        channels, axes = self.stem
        return image.ndim == 5 and image.shape[2] == channels and (axes == 2 or image.shape[1] != channels)

    @property
    def volume(self) -> Tensor:
        """The image with its channels before all spatial axes; for a clip, (B, C, T, H, W)."""
        return self.image.transpose(1, 2) if self.is_clip(self.image) else self.image

    def frames_of(self, maps: Tensor) -> Tensor:
        """Maps over the image's axes; those of a clip, (B, 1, T, h, w), as (B, T, h, w)."""
        return maps.squeeze(1) if self.is_clip(self.image) and maps.shape[1] == 1 else maps

    def image_of(self, rows: int | None = None) -> Tensor:
        """The image as seen by a layer with this many rows, or by the first convolution.

        For a clip (B, T, C, H, W), that is its single frames (B * T, C, H, W) or all of them at once, (B, C, T, H, W).
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

    def run(self) -> Output:
        """Run the model. Raises ``ValueError`` for a batch size that an exported program does not accept, and for a
        model that was partly built inside ``inference_mode``.
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
                f"model={type(self.model).__name__} is an exported program that does not accept {self.samples} samples "
                f"({error}); expected dynamic_shapes for the batch in torch.export.export, or chunks of its size."
            ) from error

    def own(self) -> "Call":
        """The call with copies of its tensors, which the model may overwrite."""
        return self.mapped(own_copy)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Call":
        """The call with a function applied to each of its tensors."""
        inputs = tuple(map(function, self.inputs))
        further = self.args, dict(self.kwargs)
        args, kwargs = tree_map_only(Tensor, function, further) if any(further) else further
        return replace(self, inputs=inputs, args=args, kwargs=kwargs)

    def rows(self, index: Tensor) -> "Call":
        """The call with the rows of its batch selected by ``index``; it shares no memory with the caller.

        Tensors with as many rows as the input are indexed too. All others are copied whole, and so is a float tensor of
        shape (1,).
        """
        samples = self.inputs[0].shape[:1]

        def take(tensor: Tensor) -> Tensor:
            single = tensor.shape == (1,) and tensor.is_floating_point()  # a scale, not the label of one image
            along = tensor.shape[:1] == samples and not single
            return rows_at(tensor.detach(), index) if along else own_copy(tensor)

        return self.mapped(take)

    def replacing(self, tensors: Mapping[int, Tensor], index: Tensor) -> "Call":
        """Like :meth:`rows`, with the inputs at some positions replaced by ``tensors``.

        >>> call = make_call(torch.nn.Identity(), torch.zeros(2, 1))
        >>> call.replacing({0: torch.ones(3, 1)}, torch.tensor([0, 0, 1])).run().flatten()
        tensor([1., 1., 1.])
        """
        others = tuple(x.new_empty(len(x), 0) if at in tensors else x for at, x in enumerate(self.inputs))
        call = replace(self, inputs=others).rows(index)  # a replaced input need not be copied
        return replace(call, inputs=tuple(tensors.get(at, x) for at, x in enumerate(call.inputs)))


def check_inputs(input: object) -> tuple[Tensor, ...]:
    """The tensors of an input. Raises ``ValueError`` for an input that is not a batch of tensors."""
    inputs = tuple(input) if isinstance(input, (tuple, list)) else (input,)
    if not inputs or not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise ValueError(
            f"input={type(input).__name__} is not a tensor; expected a tensor (N, C, H, W) or a tuple of tensors; pass "
            "further arguments as additional_forward_args or forward_kwargs, and wrap a model of dicts or nested "
            "lists in a Module that builds them from tensors."
        )
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
    if any(tensor.ndim < (2 if tensor.is_floating_point() else 1) for tensor in inputs):
        raise _no_batch(shapes)
    if not all(map(len, inputs)):
        raise ValueError(f"input={shapes} is not a batch of samples; expected a tensor (N, C, H, W) with N > 0.")
    if any(tensor.dtype == torch.uint8 and tensor.ndim > 2 for tensor in inputs):
        raise ValueError(
            "input=torch.uint8 is not floating-point; expected values on the scale that the model was "
            "trained on, such as x.float() / 255."
        )
    return inputs


def _no_batch(shape: object) -> ValueError:
    return ValueError(f"input={shape} has no batch axis; expected (N, C, H, W), such as x[None] for one image.")


def _check_image(call: Call) -> None:
    """Raise ``ValueError`` for an image without a batch axis, or on another device than the model."""
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
        f"model={type(model).__name__} was built inside inference_mode and cannot have gradients; expected a model "
        "built outside; it may still be explained inside."
    )


def check_parameters(call: Call, grad: bool) -> None:
    """Raise ``ValueError`` for a model that cannot run or, with ``grad``, one that cannot have gradients."""
    lazy = any(issubclass(kind, LazyModuleMixin) for kind in set(map(type, call.modules)))
    if lazy and any(map(is_lazy, call.parameters)):
        raise ValueError(f"model={type(call.model).__name__} has lazy parameters; expected a model that has run once.")
    first = next(call.model.parameters(), None)  # a model's parameters are built together
    if grad and first is not None and first.is_inference():
        raise _built_in_inference(call.model)


def make_call(
    model: Module, input: object, additional_forward_args: object = None, forward_kwargs: object = None
) -> Call:
    """Check the model and its arguments. Raises ``ValueError`` for what is not a model, or not a batch of tensors."""
    model, inputs, extra = unwrap(model), check_inputs(input), additional_forward_args
    args = () if extra is None else tuple(extra) if isinstance(extra, (tuple, list)) else (extra,)
    if not isinstance(forward_kwargs, (Mapping, type(None))):
        raise ValueError(
            f"forward_kwargs={shown(forward_kwargs)} is not a mapping; expected a dict of keyword arguments."
        )
    call = Call(model, inputs, args, dict(forward_kwargs or {}), Notices(model))
    _check_image(call)
    return call
