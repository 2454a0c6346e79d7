"""How good a model is: bits per byte of a text, and what each of its streams contributes to that.

`simple_hierarchical_transformer.evaluation.lm_eval` lets lm-eval's tasks run on a model; it needs the extra `eval`.
"""

from .bits_per_byte import Score, score
from .report import Evaluation, evaluate

__all__ = ["Evaluation", "Score", "evaluate", "score"]
