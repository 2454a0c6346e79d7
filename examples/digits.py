"""Images as sequences of bytes: scikit-learn's handwritten digits, 8 × 8 pixels of 17 greys, with their labels first.

    python examples/digits.py --out digits.png

A digit is a row of 65 tokens: its label, then its pixels line by line. A coarse stream of stride 8 has one token per
line of pixels. Given a label, the model draws: the picture shows ten samples of each, beside real ones.
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer

SIDE, GREYS, LABELS = 8, 17, 10
PIXELS = SIDE * SIDE

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=600)
parser.add_argument("--dim", type=int, default=64)
parser.add_argument("--samples", type=int, default=10, help="of each digit")
parser.add_argument("--out", default="digits.png")


def as_tokens() -> Tensor:
    """(images, 65): the label as one of the ids behind the greys, and then the pixels."""
    digits = load_digits()
    labels = torch.tensor(digits.target)[:, None] + GREYS
    return torch.cat((labels, torch.tensor(digits.data).long()), dim=1)


def train(model: HierarchicalTransformer, rows: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(1, steps + 1):
        batch = rows[torch.randint(len(rows), (64,))]
        loss, losses = model(batch, return_loss=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            print(f"step {step}: {losses.cross_entropy.item():.3f} nats per pixel")


def draw(samples: Tensor, real: Tensor, path: str) -> None:
    """Both (digits, count, 64): a row for each digit, samples on the left and real ones on the right."""
    count = samples.shape[1]
    white = GREYS - 1
    sheet = torch.full((LABELS * (SIDE + 1), (2 * count + 1) * (SIDE + 1)), float(white))
    for digit in range(LABELS):
        for place, image in enumerate((*samples[digit], torch.zeros(PIXELS), *real[digit])):
            top, left = digit * (SIDE + 1), place * (SIDE + 1)
            sheet[top : top + SIDE, left : left + SIDE] = (white - image.view(SIDE, SIDE)).float()
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axis = figure.add_subplot()
    axis.imshow(sheet, cmap="gray", vmin=0, vmax=white, interpolation="nearest")
    axis.set_axis_off()
    axis.set_title("drawn by the model, and (right) by hand", fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = as_tokens()
    model = HierarchicalTransformer(
        num_tokens=GREYS + LABELS,
        dim=options.dim,
        depth=4,
        heads=4,
        dim_head=options.dim // 4,
        seq_len=1 + PIXELS,
        hierarchies=(1, SIDE),
        hierarchical_stride=(1, SIDE),
        window_sizes=(2 * SIDE, None),
    )
    train(model, rows, options.steps)

    prompts = (torch.arange(LABELS) + GREYS).repeat_interleave(options.samples)[:, None]
    drawn = model.generate(prompts, PIXELS, filter_thres=0.0).clamp(max=GREYS - 1)
    real = torch.stack([rows[rows[:, 0] == GREYS + digit, 1:][: options.samples] for digit in range(LABELS)])
    draw(drawn.view(LABELS, options.samples, PIXELS), real, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
