"""A training loop of your own in plain PyTorch, on a file of your own.

    python examples/own_loop.py text.txt --steps 2000

Bytes in, a small two-stream model, AdamW with warmup and decay, validation on the last tenth of the file, the best
model saved, and a sample at the end.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.evaluation import evaluate

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("text", type=Path)
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--seq-len", type=int, default=512)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--dim", type=int, default=128)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--out", default="my-model")


def random_batch(text: Tensor, batch_size: int, length: int) -> Tensor:
    """(b, length): windows of the text that begin anywhere."""
    starts = torch.randint(len(text) - length, (batch_size,)).tolist()
    return torch.stack([text[start : start + length] for start in starts]).long()


def learning_rate(step: int, steps: int) -> float:
    """As a share of the highest: up over the first twentieth, then down to 0 as a cosine."""
    warmup = max(steps // 20, 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def main() -> None:
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = torch.frombuffer(bytearray(options.text.read_bytes()), dtype=torch.uint8)
    if len(text) < 20 * (options.seq_len + 1):
        parser.error(
            f"{options.text} has {len(text)} bytes, too few for sequences of {options.seq_len}: lower --seq-len"
        )
    train, validation = text[: -len(text) // 10], text[-len(text) // 10 :]

    model = HierarchicalTransformer(
        num_tokens=256,
        dim=options.dim,
        depth=4,
        heads=4,
        dim_head=options.dim // 4,
        seq_len=options.seq_len,
        hierarchies=(1, 16),
        hierarchical_stride=(1, 16),
        window_sizes=(64, None),
        merge_type="linear",
        compress_after=2,
        ngram_sizes=(2, 3, 4),
        recon_loss_weight=0.0,
        hierarchical_ar_loss_weight=0.0,
    ).to(device)
    # tables of n-grams see each of their rows seldom, and so learn at a rate of their own
    tables = [p for name, p in model.named_parameters() if name.startswith("ngrams.")]
    others = [p for name, p in model.named_parameters() if not name.startswith("ngrams.")]
    optimizer = torch.optim.AdamW(
        [{"params": others, "lr": options.lr}, {"params": tables, "lr": 1e-2}], betas=(0.9, 0.95), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, options.steps))

    best = math.inf
    for step in range(1, options.steps + 1):
        # one more than seq_len: each position predicts the next token
        batch = random_batch(train, options.batch_size, options.seq_len + 1).to(device)
        loss, losses = model(batch, return_loss=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == options.steps:
            found = evaluate(model, validation, limit=20_000, ablate=False)
            print(
                f"step {step}: {losses.cross_entropy.item() / math.log(2):.3f}, {found.bits_per_byte:.3f} bits per byte"
            )
            if found.bits_per_byte < best:
                best = found.bits_per_byte
                model.save_pretrained(options.out)

    model = HierarchicalTransformer.from_pretrained(options.out).to(device)
    prompt = validation[:20].long()[None].to(device)
    sample = model.generate(prompt, 200, temperature=0.8, top_p=0.95)
    print(bytes(prompt[0].tolist() + sample[0].tolist()).decode(errors="backslashreplace"))


if __name__ == "__main__":
    main()
