"""From the embeddings of all input tokens to the tokens of one stream."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from .activation import squared_relu
from .linear import Linear
from .state import Register, StateSpec, extend_padded


class Compressor(nn.Module):
    """Causal convolution with kernel `compress_factor` and the stream's stride: (b, n, dim_in) → (b, m, dim_out).

    Token `j` sees the input tokens s·j-c+1 … s·j and nothing after them. For factor 4 and stride 2:

        input      0 1 2 3 4 5 6
        token 0    x                  (and three zeros before the start)
        token 1    x x x
        token 2      x x x x
        token 3          x x x x
    """

    def __init__(self, dim_in: int, dim_out: int, *, compress_factor: int, stride: int) -> None:
        super().__init__()
        self.compress_factor = compress_factor
        self.stride = stride
        self.dim_in = dim_in
        self.window = Linear(compress_factor * dim_in, dim_out)  # the convolution, as a map of one window
        self.to_out = Linear(dim_out, dim_out, bias=False)

    def init_state(self, spec: StateSpec) -> Register:
        return Register(spec, stride=1, keep=self.compress_factor - 1, dim=self.dim_in)

    def forward(self, x: Tensor, skip: int = 0, state: Register | None = None) -> Tensor:
        """`skip` input tokens of `x` come before the first at which a stream token stands."""
        c, s = self.compress_factor, self.stride
        rows = extend_padded(state, x, back=c - 1)[:, skip:]
        if rows.shape[1] < c:  # the next token isn't due in this chunk
            return x.new_zeros(x.shape[0], 0, self.to_out.out_features)
        d = rows.shape[2]
        if rows.shape[1] < c + s:  # a single token; of an overlapping view torch.compile makes code that fails
            windows = rearrange(rows[:, :c], "b c d -> b 1 (c d)")
        else:
            windows = rearrange(rows, "b n d -> b (n d)").unfold(1, c * d, s * d)  # (b, m, c·d), a view
        out: Tensor = self.to_out(squared_relu(self.window(windows)))
        return out


class Projection(nn.Module):
    """The compressor of factor 1: a linear map where the widths differ, else nothing."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.map = nn.Identity() if dim_in == dim_out else Linear(dim_in, dim_out, bias=False)

    def init_state(self, spec: StateSpec) -> None:
        return None

    def forward(self, x: Tensor, skip: int = 0, state: None = None) -> Tensor:
        out: Tensor = self.map(x)
        return out
