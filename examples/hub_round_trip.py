"""A model to the Hugging Face Hub and back: the same weights, to the bit.

    hf auth login
    python examples/hub_round_trip.py user/name --model runs/default/model

The repository is made where it isn't there, private unless you say --public.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from simple_hierarchical_transformer import HierarchicalTransformer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("name", help="user/name on the Hub")
parser.add_argument("--model", type=Path, help="folder of a model; by default a small one with random weights")
parser.add_argument("--public", action="store_true")


def main() -> None:
    options = parser.parse_args()
    if options.model is not None:
        model = HierarchicalTransformer.from_pretrained(options.model)
    else:
        model = HierarchicalTransformer(
            num_tokens=256,
            dim=32,
            depth=2,
            heads=2,
            dim_head=16,
            seq_len=128,
            hierarchies=(1, 4),
            window_sizes=(8, None),
        )
    url = model.push_to_hub(options.name, private=not options.public)
    print(f"uploaded: {url}")

    back = HierarchicalTransformer.from_pretrained(options.name)
    differing = [
        name for name, weight in model.state_dict().items() if not torch.equal(weight, back.state_dict()[name])
    ]
    if differing:
        raise SystemExit(f"these came back changed: {', '.join(differing)}")
    print(f"came back with the same {model.num_parameters().total:,} parameters")


if __name__ == "__main__":
    main()
