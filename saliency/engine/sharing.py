"""One forward pass for many methods: the graph is recorded once, and every backward pass runs under its own rules."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from saliency.engine.call import Call, Input, make_call
from saliency.engine.contexts import NullContext, Rule, RuleContext, activation_rules, is_inplace
from saliency.engine.layers import Layer
from saliency.engine.probe import add_hook
from saliency.engine.record import ContextBuilder, recording
from saliency.engine.site import Site, make_site
from saliency.engine.state import evaluating, model_device
from saliency.engine.targets import main_output

Recorded: TypeAlias = tuple[Any, list[list[Tensor]]]
Operation: TypeAlias = tuple[Any, Any]  # a torch function, and what it returned
Place: TypeAlias = tuple[Module, str]
Known: TypeAlias = dict[Tensor, Tensor | None]  # gradients by the tensor that they belong to
Versions: TypeAlias = list[tuple[Tensor, int]]  # tensors, and how often each had been overwritten


def _place(site: Site) -> Place:
    return site.module, site.side


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # inference mode counts none


def _unchanged(versions: Versions) -> bool:
    return all(_version(x) == version for x, version in versions)


def _versions(values: Any) -> Versions:
    with torch._C.DisableTorchFunction():
        return [(x, _version(x)) for x in tree_leaves(values) if isinstance(x, Tensor)]


def _given(call: Call) -> tuple[Any, ...]:
    return call.inputs, call.args, call.kwargs


class _SwitchedReLU(torch.autograd.Function):
    """ReLU, whose rule is chosen when the gradient comes back. It keeps no more than it returns."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, rules: Mapping[Any, Rule], function: Callable[..., Any], *call: Any) -> Tensor:
        output: Tensor = function(input, *call[0], **call[1])
        ctx.rules, ctx.function = rules, function
        ctx.save_for_backward(output)
        if output is input:
            ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        rule, output = ctx.rules.get(ctx.function), ctx.saved_tensors[0]
        if rule is None:
            sent = torch.ops.aten.threshold_backward(gradient, output, 0)
        else:
            sent = _send_back(partial(rule, F.relu), output, gradient)
        return sent, None, None, None, None


class _Switched(torch.autograd.Function):
    """Another activation function, whose rule is chosen when the gradient comes back."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, rules: Mapping[Any, Rule], function: Callable[..., Any], *call: Any) -> Tensor:
        ctx.rules, ctx.function, ctx.call = rules, function, call
        ctx.inplace = is_inplace(function, *call[0], **call[1])
        ctx.save_for_backward(input.clone() if ctx.inplace else input)
        output: Tensor = function(input, *call[0], **call[1])
        if ctx.inplace:
            ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        rule, (args, kwargs) = ctx.rules.get(ctx.function), ctx.call
        run = ctx.function if rule is None else partial(rule, ctx.function)

        def activate(input: Tensor) -> Tensor:
            output: Tensor = run(input.clone() if ctx.inplace else input, *args, **kwargs)
            return output

        return _send_back(activate, ctx.saved_tensors[0], gradient), None, None, None, None


def _send_back(function: Callable[[Tensor], Tensor], input: Tensor, gradient: Tensor) -> Tensor:
    with torch.enable_grad():
        input = input.detach().requires_grad_()
        output = function(input)
    return torch.autograd.grad(output, input, gradient)[0]


class _DivergedError(Exception):
    """The model does not repeat what it did in the shared forward pass."""


class _Replay(RuleContext):
    """A context in which the first operations give the results that they had before."""

    def __init__(self, front: Sequence[Operation], context: AbstractContextManager[Any]) -> None:
        super().__init__({})
        self._operations, self._context = iter(front), context

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known, result = next(self._operations, (None, None))
        if known is None:
            return func(*args, **(kwargs or {}))
        if known != func:
            raise _DivergedError
        return tree_map_only(Tensor, torch.Tensor.detach, result)

    def __enter__(self) -> "_Replay":
        self._context.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._context.__exit__(*error)


class _Recorder(RuleContext):
    """Keep what the operations of a forward pass return, and how many of them come before each of the sites."""

    def __init__(self, model: Module, sites: Sequence[Site], switched: RuleContext) -> None:
        super().__init__({})
        self._model, self._sites, self._switched = model, sites, switched
        self._operations: list[Operation] = []
        self._fronts: dict[Place, tuple[int, Versions]] = {}
        self._inputs: Versions = []
        self._stack = ExitStack()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._operations.append((func, result))
        return result

    def __enter__(self) -> "_Recorder":
        self._hook(self._model.register_forward_pre_hook, self._keep_inputs, with_kwargs=True)
        for site in self._sites:
            module, before = site.module, site.side == "input"
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            self._hook(register, partial(self._mark, _place(site)))
        self._stack.enter_context(self._switched)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()
        del self._switched  # whose rules hold what holds this recorder: memory must not wait for the garbage collector

    def _hook(self, register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> None:
        self._stack.callback(add_hook(register, hook, **options).remove)

    def _keep_inputs(self, module: Module, args: Any, kwargs: Any) -> None:
        self._inputs = _versions((args, kwargs))

    def _mark(self, place: Place, *_: Any) -> None:
        results = [result for _, result in self._operations]
        self._fronts.setdefault(place, (len(results), _versions(results)))

    def front(self, sites: Sequence[Site]) -> Sequence[Operation]:
        """The operations in front of all sites; none where the input or their results were overwritten since."""
        count, versions = min((self._fronts[_place(site)] for site in sites), key=lambda front: front[0])
        return self._operations[:count] if _unchanged(self._inputs) and _unchanged(versions) else ()


class SharedForward:
    """One recorded forward pass; :func:`shared_forward` says what it is for."""

    def __init__(self, call: Call, saliency_layers: Sequence[Layer]) -> None:
        self._model, self._call = call.model, call
        sites = [make_site(call, layer) for layer in saliency_layers]
        self._rules: dict[Any, Rule] = {}  # of the backward pass that runs now
        self._given = _versions(
            (call.inputs, call.args, call.kwargs, [*call.model.parameters(), *call.model.buffers()])
        )
        self._precision = self._autocast()
        self._saved: Versions = []
        self._plain = True  # only the input of an activation depends on the layers
        self._found: list[tuple[dict[Any, Rule], Tensor, Known]] = []
        self._recorder = _Recorder(self._model, sites, RuleContext(activation_rules(self._switch)))
        with (
            evaluating(self._model, call.modules),
            recording(call, sites, lambda: self._recorder) as (output, recorded),
        ):
            self._output = output
            self._tensors = dict(zip(map(_place, sites), recorded, strict=True))
        self._saved += _versions(output)

    def _switch(self, function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and input.requires_grad):
            return function(input, *args, **kwargs)
        inplace = is_inplace(function, *args, **kwargs)
        if inplace and input._is_view():
            # Autograd would rewrite the history of the viewed tensor, past the switch.
            return input.copy_(self._switch(function, input.clone(), *args, **kwargs))
        self._plain &= all(x.grad_fn is None for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        relu = function.__name__ in ("relu", "relu_")  # as a clamp or a threshold it keeps its input, not its result
        output: Any = (_SwitchedReLU if relu else _Switched).apply(input, self._rules, function, args, kwargs)
        self._saved += _versions(output if relu else () if inplace else input)
        return output

    @contextmanager
    def recording(
        self, call: Call, sites: Sequence[Site], context_builder: ContextBuilder, grad: bool = True
    ) -> Iterator[Recorded]:
        """As the function, but for the part of the forward pass that is known."""
        context: Any = context_builder() if callable(context_builder) else None
        places = list(map(_place, sites))
        known = self._is_own(call) and all(place in self._tensors for place in places)
        rules = isinstance(context, RuleContext)
        switchable = type(context) is NullContext or (rules and context.switchable)
        if known and switchable and self._plain and _unchanged(self._saved):
            self._rules.clear()
            self._rules.update(getattr(context, "rules", {}))
            torch.set_grad_enabled(grad)  # as a probe does: the target may be a function of the output
            with context:  # which has rules for that function, too
                yield self._output, [self._tensors[place] for place in places]
            return
        front = self._recorder.front(sites) if known and rules and context.exact else ()
        builders: list[ContextBuilder] = [lambda: _Replay(front, context)] if front else []
        builders.append(context_builder if context is None else lambda: context)
        with ExitStack() as stack:
            for build in builders:
                with suppress(_DivergedError):
                    recorded = stack.enter_context(recording(call, sites, build, grad))
                    break
            yield recorded

    def gradients(self, scores: Tensor, tensors: Sequence[Tensor], gradient: Tensor) -> list[Tensor | None]:
        """The gradients at the tensors; what an earlier method has asked for is not computed again."""
        known = self._known(gradient) if scores is main_output(self._output) else {}
        if missing := [x for x in tensors if x not in known]:
            with torch._C.DisableTorchFunction():  # each rule has been chosen
                found = torch.autograd.grad(scores, missing, gradient, retain_graph=True, allow_unused=True)
            known |= zip(missing, found, strict=True)
        return [None if (dx := known[x]) is None else dx.clone() for x in tensors]

    def _known(self, gradient: Tensor) -> Known:
        """The gradients that were found under the present rules."""
        for rules, sent, known in self._found:
            if rules == self._rules and torch.equal(sent, gradient):
                return known
        self._found.append((dict(self._rules), gradient.clone(), {}))
        return self._found[-1][-1]

    def _is_own(self, call: Call) -> bool:
        """Is it the call of the shared pass, and nothing that goes into it changed since then?"""
        (tensors, tree), (own_tensors, own_tree) = map(tree_flatten, (_given(call), _given(self._call)))
        same = (
            call.model is self._model
            and tree == own_tree
            and all(x is y for x, y in zip(tensors, own_tensors, strict=True))
        )
        return same and _unchanged(self._given) and self._precision == self._autocast()

    def _autocast(self) -> torch.dtype | None:
        kind = model_device(self._model).type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def shared_forward(
    model: Module,
    input: Input,
    saliency_layers: Sequence[Layer] = ("",),
    *,
    additional_forward_args: Any = None,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> SharedForward:
    """Run the model once for many methods: each gets the result as its option ``shared``.

    At the given layers, methods that change nothing but activation functions (the gradient, the CAMs, guided
    backpropagation, DeConvNet) need no forward pass any more; those with other rules (excitation backprop) run what
    lies behind their layer. A call with another model, input or layer, or with ``debug``, runs on its own. The graph,
    and what every operation returned, stay in memory as long as the result does; one thread may use it at a time.
    Errors: see :func:`saliency`.

    >>> from saliency.scenes import make_scene, scene_network
    >>> shared = shared_forward(scene_network(), make_scene(0).image[None], ["layer4"])
    """
    return SharedForward(make_call(model, input, additional_forward_args, forward_kwargs), saliency_layers)
