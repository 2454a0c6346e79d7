"""A training loop of your own with accelerate: one device or several, in mixed precision if you like.

    accelerate launch examples/own_loop_accelerate.py text.txt --steps 2000

Padding and all: lines of the text are documents of different lengths, and the loss of a step is the mean over the
tokens of all processes, not the mean of their means.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from simple_hierarchical_transformer import HierarchicalTransformer

PADDING = -100  # the default of ignore_index, which is no byte: embedded as zeros, never a target

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("text", type=Path)
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--seq-len", type=int, default=256)
parser.add_argument("--batch-size", type=int, default=16, help="of each process")
parser.add_argument("--dim", type=int, default=128)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--out", default="my-model")


def documents(path: Path, seq_len: int) -> list[Tensor]:
    lines = [line + b"\n" for line in path.read_bytes().split(b"\n") if line]
    return [torch.tensor(list(line[: seq_len + 1])) for line in lines]


def collate(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=PADDING)


def main() -> None:
    options = parser.parse_args()
    accelerator = Accelerator()
    rows = documents(options.text, options.seq_len)
    if len(rows) < options.batch_size * accelerator.num_processes:
        parser.error(f"{options.text} has {len(rows)} lines, fewer than a batch of each process: lower --batch-size")
    loader = DataLoader(rows, options.batch_size, shuffle=True, collate_fn=collate, drop_last=True)
    model = HierarchicalTransformer(
        num_tokens=256,
        dim=options.dim,
        depth=4,
        heads=4,
        dim_head=options.dim // 4,
        seq_len=options.seq_len,
        hierarchies=(1, 8),
        hierarchical_stride=(1, 8),
        window_sizes=(32, None),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.95))
    count_targets = model.count_targets
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    step = 0
    while step < options.steps:
        for batch in loader:
            step += 1
            # of all processes together; each adds its share, and backward means over them
            counts = accelerator.reduce(count_targets(batch), reduction="sum")
            loss, losses = model(batch, return_loss=True, target_counts=counts)
            accelerator.backward(loss * accelerator.num_processes)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 100 == 0 or step == options.steps:
                nats = accelerator.reduce(losses.cross_entropy.detach(), reduction="sum")
                accelerator.print(f"step {step}: {nats.item() / math.log(2):.3f} bits per byte")
            if step == options.steps:
                break

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(options.out)


if __name__ == "__main__":
    main()
