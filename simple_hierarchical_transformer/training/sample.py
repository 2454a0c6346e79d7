"""What a model writes after the beginning of the validation text."""

from __future__ import annotations

import torch

from ..model import HierarchicalTransformer
from ..text.printing import printable
from .run import Run

PROMPT_BYTES = 64


def write_sample(run: Run, model: HierarchicalTransformer) -> str:
    """As many tokens as the run asks for, after their prompt, shown as text that any terminal can print."""
    config, corpus = run.config, run.split.validation
    length = min(max(round(PROMPT_BYTES / corpus.bytes_per_token), 1), len(corpus))
    prompt = corpus.windows([0], length).long().to(model.device)
    generator = torch.Generator(model.device).manual_seed(config.seed)
    was_training = model.training
    model.eval()
    with run.autocast():
        written = model.generate(prompt, config.sample_length, generator=generator)
    model.train(was_training)
    return printable(run.tokenizer.decode([*prompt[0].tolist(), *written[0].tolist()]))
