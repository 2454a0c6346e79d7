"""The configuration of a model, frozen and validated: `arguments.py` makes it from the public arguments.

Everything below the model takes a `StreamConfig` or a few plain numbers, and trusts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

LatentLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One stream: a level of the hierarchy.

    Stream token `j` stands at fine position `stride * j` and summarises the `compress_factor` input tokens that
    end there. For example, with factor 4 and stride 2 (so 2 phase groups), over 9 input tokens:

        fine position   0 1 2 3 4 5 6 7 8
        stream token    0   1   2   3   4      token 3 stands at 6 and summarises 3 … 6
        phase           0   1   0   1   0      token 3 attends to itself and to token 1, which ends where it starts
    """

    compress_factor: int
    stride: int
    dim: int
    dim_head: int
    heads: int
    ff_mult: float
    window_size: int | None

    @property
    def phase_groups(self) -> int:
        """Number of interleaved sequences of disjoint tokens: compress factor over stride."""
        return self.compress_factor // self.stride

    @property
    def is_coarse(self) -> bool:
        """Whether a token summarises more than one input token."""
        return self.compress_factor > 1

    @property
    def ff_dim(self) -> int:
        return int(self.dim * self.ff_mult)

    def reach(self, seq_len: int) -> int:
        """How many previous tokens of its phase a token attends to; a full window reaches over `seq_len` inputs."""
        full = (seq_len - 1) // self.compress_factor
        return full if self.window_size is None else self.window_size


@dataclass(frozen=True, kw_only=True)
class NgramConfig:
    """Which n-grams of the input have vectors of their own, and how many rows their tables have."""

    sizes: tuple[int, ...]
    table_size: int


@dataclass(frozen=True, kw_only=True)
class ProphetConfig:
    """Coarse tokens predict the input tokens that follow, or the quantised code of their next disjoint token."""

    weight: float
    use_quantized: bool
    quantized_use_embed: bool
    num_codebooks: int
    codebook_dim: int
    codebook_size: int


@dataclass(frozen=True, kw_only=True)
class NextLatentConfig:
    """Stream tokens predict their next latents through a small dynamics network (arXiv 2511.05963)."""

    weights: tuple[float, ...]
    loss_type: str | LatentLoss
    num_rollouts: int
    chunk_summarizers: tuple[nn.Module | None, ...]
    detach_summaries: bool
    hidden_dim: int | None
    num_layers: int
    dynamic_weight: bool
    decay: float
    rollout_weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole model, validated."""

    num_tokens: int
    depth: int
    seq_len: int
    streams: tuple[StreamConfig, ...]
    predict_index: int
    merge_all: bool
    merge_type: str
    compress_after: int
    predict_use_all: bool
    ngrams: NgramConfig
    reconstruction_weight: float
    hierarchical_ar_weight: float
    prophet: ProphetConfig
    next_latent: NextLatentConfig
    ignore_index: int
    use_flash_attn: bool | None
    use_xpos: bool
    checkpoint_activations: bool

    @property
    def dim_embedding(self) -> int:
        """The largest width of a stream, or the size of the vocabulary where that is less and a stream is coarse.

        Embeddings of v ids span v dimensions at most. What compressors make of wider ones they can make of these, with
        fewer parameters. A module that is given for summaries counts on the largest width. Where coarse streams begin
        in the states of the predict stream, only that one reads the embeddings.
        """
        widest = self.predict_stream.dim if self.compress_after else max(stream.dim for stream in self.streams)
        given = any(module is not None for module in self.next_latent.chunk_summarizers)
        is_compressed = any(stream.is_coarse for stream in self.streams)
        return min(widest, self.num_tokens) if is_compressed and not given else widest

    @property
    def predict_stream(self) -> StreamConfig:
        return self.streams[self.predict_index]

    @property
    def dim_head_input(self) -> int:
        """Width of what the logits come from: the predict stream's, or that of all streams side by side."""
        return sum(s.dim for s in self.streams) if self.predict_use_all else self.predict_stream.dim

    def dim_compressed(self, index: int) -> int:
        """Width of what the tokens of stream `index` are made from."""
        from_states = self.compress_after and index != self.predict_index
        return self.predict_stream.dim if from_states else self.dim_embedding

    def depth_of(self, index: int) -> int:
        """Layers that stream `index` goes through."""
        return self.depth if index == self.predict_index else self.depth - self.compress_after

    @property
    def shared_depth(self) -> int:
        """Layers that all streams go through."""
        return self.depth - self.compress_after

    def merge_targets(self, *, is_last: bool) -> tuple[int, ...]:
        """Indices of the streams that a layer merges into."""
        if not self.merge_all:
            return (self.predict_index,)
        return tuple(i for i in range(len(self.streams)) if not is_last or self.output_is_used(i))

    def output_is_used(self, index: int) -> bool:
        """Whether anything that is trained reads what stream `index` holds after the last merge.

        A merge into a stream that nothing reads afterwards would have parameters that never learn, so it isn't built.
        """
        coarse_loss = self.reconstruction_weight > 0 or self.hierarchical_ar_weight > 0 or self.prophet.weight > 0
        return (
            self.predict_use_all
            or index == self.predict_index
            or (coarse_loss and self.streams[index].is_coarse)
            or self.next_latent.weights[index] > 0
        )
