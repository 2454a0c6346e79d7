"""Where numbers stop being finite: the first module whose output isn't, or the first parameter whose gradient isn't."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteError(ArithmeticError):
    """The loss or its gradient isn't a finite number any more."""


def tensors_in(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from tensors_in(part)


def is_finite(output: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(output) if tensor.is_floating_point())


@torch.no_grad()
def first_module_not_finite(model: nn.Module, call: Callable[[], Any]) -> str | None:
    """The name of the first module of `model` that returns, in a call, what isn't finite; None: all do.

    What a module returns is known when it is done, so that of a module and one within it, that within it is named.
    """
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if not found and not is_finite(output):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def first_gradient_not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter, in the order of the model, whose gradient isn't finite; None: all are."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not is_finite(parameter.grad):
            return name
    return None
