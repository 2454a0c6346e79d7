"""The states of the random-number generators, as tensors: nothing is pickled."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor

PYTHON_VERSION = 3  # of what `random.getstate` returns
PYTHON_WORDS = 625


def random_state() -> dict[str, Tensor]:
    """Of torch on CPUs and on each CUDA device, and of Python; `set_random_state` takes them back."""
    _, words, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states |= {f"cuda_{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_random_state(states: Mapping[str, Tensor]) -> None:
    """Where there are fewer devices than there were, the states of the others are left out.

    Raises:
        ValueError: a state that must be there isn't, or has another size.
    """
    expected = {"torch": torch.get_rng_state().shape, "python": (PYTHON_WORDS,)}
    for name, shape in expected.items():
        if name not in states or tuple(states[name].shape) != tuple(shape):
            raise ValueError(f"the state of {name}'s random numbers is missing, or of another size")
    torch.set_rng_state(states["torch"])
    gauss = states.get("python_gauss", torch.zeros(0)).tolist()
    words = tuple(int(word) for word in states["python"].tolist())
    random.setstate((PYTHON_VERSION, words, gauss[0] if gauss else None))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda_{i}" in states:
                torch.cuda.set_rng_state(states[f"cuda_{i}"], i)
