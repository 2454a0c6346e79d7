"""Scripts written for the reference package of the same name run unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from simple_hierarchical_transformer import HierarchicalTransformer

ROOT = Path(__file__).parent.parent
FIRST = """
model = HierarchicalTransformer(num_tokens=20000, dim=512, depth=6, dim_head=64, heads=8, seq_len=2048,
                                hierarchies=(1, 2, 8), window_sizes=(32, 64, None))
ids = torch.randint(0, 20000, (1, 2048))
loss, _ = model(ids, return_loss=True); loss.backward(); logits = model(ids)
"""
SECOND = """
model = HierarchicalTransformer(num_tokens=20000, dim=512, depth=8, dim_head=64, heads=8, seq_len=2048,
                                hierarchies=1, window_sizes=None)
"""
THIRD = """
model = HierarchicalTransformer(num_tokens=256, dim=(128, 256, 512, 1024), depth=8, seq_len=1024, use_flash_attn=True,
                                ff_mult=(2, 2, 4, 4), dim_head=(16, 32, 64, 64), heads=(2, 4, 8, 8),
                                hierarchies=(1, 2, 4, 16), hierarchical_stride=(1, 1, 1, 8),
                                window_sizes=(16, 32, 64, None)).cuda()
"""
USE = """
ids = torch.randint(0, model.num_tokens, (1, model.seq_len)).to(model.device)
loss, _ = model(ids, return_loss=True)
loss.backward()
assert loss.isfinite()
"""


def run_script(script: str) -> tuple[int, float]:
    """Parameters of the script's model, and the most memory in GB that a process of its own took for it."""
    if not torch.cuda.is_available():
        script = script.replace(".cuda()", "")
    report = "print(sum(p.numel() for p in model.parameters()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    lines = ["import resource, torch", "from simple_hierarchical_transformer import HierarchicalTransformer", script]
    command = [sys.executable, "-c", "\n".join([*lines, report])]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    parameters, kilobytes = run.stdout.split()
    return int(parameters), int(kilobytes) / 1e6


def test_the_parameters_of_the_first_example_are_under_one_hundred_million() -> None:
    with torch.device("meta"):
        scope: dict[str, Any] = {"HierarchicalTransformer": HierarchicalTransformer}
        arguments = FIRST.split("ids =")[0]
        exec(arguments, scope)
    assert sum(p.numel() for p in scope["model"].parameters()) < 100e6


@pytest.mark.slow
def test_the_first_example_runs_and_its_training_step_takes_under_four_gigabytes() -> None:
    model, loop = FIRST.split("ids =")
    step = "optimizer = torch.optim.AdamW(model.parameters())\nids =" + loop.replace(
        "logits = model(ids)", "optimizer.step()"
    )
    parameters, gigabytes = run_script(model + step)
    print(f"{parameters / 1e6:.1f} M parameters, peak {gigabytes:.2f} GB")
    assert parameters < 100e6
    assert gigabytes < 4
    run_script(FIRST)


@pytest.mark.slow
@pytest.mark.parametrize("script", [SECOND, THIRD], ids=["second", "third"])
def test_the_other_examples_run(script: str) -> None:
    run_script(script + USE)


def test_a_training_loop_of_the_reference_runs_with_accelerate() -> None:
    accelerator = Accelerator(cpu=True)
    model = HierarchicalTransformer(
        num_tokens=256, dim=(8, 8), depth=1, seq_len=32, dim_head=4, heads=2, hierarchies=(1, 4), window_sizes=(8, None)
    )
    optim = torch.optim.Adam(model.parameters(), lr=1e-3)
    model, optim = accelerator.prepare(model, optim)
    batch = torch.randint(0, 256, (2, 33))
    model.train()
    losses = []
    for _ in range(3):
        loss, (ce_loss, recon_loss, prophet_loss) = model(batch, return_loss=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 0.5)
        optim.step()
        optim.zero_grad()
        losses.append(float(ce_loss.detach()))
        assert recon_loss > 0 and prophet_loss > 0
    assert losses[-1] < losses[0]
    model.eval()
    inp = batch[0]
    assert accelerator.unwrap_model(model).generate(inp[None, ...], 1024).shape == (1, 1024)
