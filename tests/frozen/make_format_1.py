"""Make the model that is frozen in `format-1`, once and for all: run again, it refuses to.

    python tests/frozen/make_format_1.py

Whatever becomes of the package, this model must load and give the logits that it gave then. A later version of the
format has a folder and a script of its own beside these.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from simple_hierarchical_transformer import HierarchicalTransformer

FOLDER = Path(__file__).parent / "format-1"
ARGUMENTS = {
    "num_tokens": 13, "dim": (8, 6, 4), "depth": 2, "seq_len": 48, "dim_head": (4, 2, 2), "heads": (2, 1, 2),
    "ff_mult": (2, 1.5, 2), "hierarchies": (1, 4, 8), "hierarchical_stride": (1, 2, 8), "window_sizes": (5, 3, None),
    "hierarchy_merge_all": True, "predict_use_all_hierarchy": True, "recon_loss_weight": 0.2,
    "hierarchical_ar_loss_weight": 0.3, "prophet_loss_weight": 0.4, "prophet_loss_use_quantized": True,
    "prophet_quantized_use_embed": True, "rq_num_codebooks": 2, "rq_codebook_dim": 3, "rq_codebook_size": 5,
    "next_latent_loss_weight": (0.0, 0.5, 0.25), "next_latent_loss_type": "smooth_l1", "num_rollouts": 2,
    "detach_summaries": False, "dynamics_hidden_dim": 3, "dynamics_num_layers": 2, "dynamic_loss_decay": 0.5,
    "rollout_weights": (0.75, 0.25), "ignore_index": -1, "use_xpos": True,
}  # fmt: skip


def main() -> None:
    if FOLDER.exists():
        raise SystemExit(f"{FOLDER} is frozen: leave it as it is")
    torch.manual_seed(0)
    model = HierarchicalTransformer(**ARGUMENTS).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that each shows in the logits
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        ids = torch.randint(0, 13, (2, 48))
        ids[1, -5:] = -1
        model.save_pretrained(FOLDER)
        (FOLDER / "README.md").unlink()
        expected = {"ids": ids, "logits_float32": model(ids)}
        model.double()
        expected["logits_float64"] = model(ids)
    save_file(expected, FOLDER / "expected.safetensors")


if __name__ == "__main__":
    main()
