"""From the embeddings of all input tokens to the tokens of one stream.

A text has no more different embeddings than there are ids. Where it is much longer than that, what a weight makes of an
embedding is computed once for each id and looked up for each token: the same function for less work.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .linear import Linear, has_own_backward, is_untouched
from .squared_relu import linear_squared_relu_linear, squared_relu
from .state import Register, StateSpec, extend_padded

LOOK_UP = 32  # multiply-adds that take as long as one number that is looked up and added (benchmarks/look_up.py)


class Source(NamedTuple):
    """Where the embeddings (b, n, d) of a text come from: those at [i, p] are row `rows[i, p]` of `table`."""

    rows: Tensor  # (b, n)
    table: Tensor  # (v + 1, d): an embedding for each id, and zeros, which padding has


def is_faster_looked_up(windows: int, num_tokens: int, dim: int, device: torch.device) -> bool:
    """Whether to multiply a weight by the embeddings of all ids, and look up what that gives for a text's windows.

    For each output and each token of a window, the product with the text costs `dim` multiply-adds per window, and that
    with the ids as many per id, and a look-up per window. With 256 ids and a width of 192 this pays from 308 windows
    on, with a width of 64 from 513 on, and with 32 never. It was measured on CPUs, and is done on CPUs only.

    Where a stream is no wider than the embeddings, the products take no more memory than the windows' embeddings, which
    the plain product writes out, if only backward.
    """
    return device.type == "cpu" and num_tokens * dim + windows * LOOK_UP < windows * dim


def precise(products: Tensor) -> Tensor:
    """In float32 or above, in which sums are taken: of products, and of their gradients, one for each look-up."""
    return products.to(torch.promote_types(products.dtype, torch.float32))


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

    def forward(self, x: Tensor, skip: int = 0, state: Register | None = None, source: Source | None = None) -> Tensor:
        """The stream's tokens (b, m, dim_out) that stand in a chunk of the input.

        Args:
            x: embeddings of the chunk (b, n, dim_in).
            skip: how many of its tokens come before the first at which a stream token stands.
            state: what came before the chunk; by default, nothing.
            source: where x comes from, of a chunk with nothing before it.
        """
        c, s = self.compress_factor, self.stride
        if source is not None and self._looks_up(source):
            return self._tokens(self._looked_up(source))
        rows = extend_padded(state, x, back=c - 1)[:, skip:]
        if rows.shape[1] < c:  # the next token isn't due in this chunk
            return x.new_zeros(x.shape[0], 0, self.to_out.out_features)
        d = rows.shape[2]
        if rows.shape[1] < c + s:  # a single token; of an overlapping view torch.compile makes code that fails
            windows = rearrange(rows[:, :c], "b c d -> b 1 (c d)")
        else:
            windows = rearrange(rows, "b n d -> b (n d)").unfold(1, c * d, s * d)  # (b, m, c·d), a view
        if has_own_backward(self.window, self.to_out):
            window = self.window
            return linear_squared_relu_linear([windows], [window.weight], self.to_out.weight, window.bias)
        return self._tokens(self.window(windows))

    def _looks_up(self, source: Source) -> bool:
        b, n = source.rows.shape
        windows, num_tokens = b * -(-n // self.stride), len(source.table) - 1
        is_faster = is_faster_looked_up(windows, num_tokens, self.dim_in, source.rows.device)
        return is_faster and is_untouched(self.window)

    def _looked_up(self, source: Source) -> Tensor:
        """What `window` makes of each window (b, m, dim_out): a sum of c products with an embedding.

        Those with the first token of a window come first, one for each row of the table; then those with the second.
        For factor 2 and a table of 10 rows, a window of the rows 7 and 3 is the sum of the products 7 and 13.
        """
        c, (rows, table) = self.compress_factor, source
        weight = rearrange(self.window.weight, "o (c d) -> (o c) d", c=c)
        products = rearrange(F.linear(table, weight), "v (o c) -> (c v) o", c=c)
        windows = F.pad(rows, (c - 1, 0), value=len(table) - 1).unfold(1, c, self.stride)  # (b, m, c)
        places = windows + torch.arange(c, device=rows.device) * len(table)
        sums = F.embedding_bag(rearrange(places, "b m c -> (b m) c"), precise(products), mode="sum")
        hidden = (sums + self.window.bias).to(products.dtype)
        return rearrange(hidden, "(b m) o -> b m o", b=rows.shape[0])

    def _tokens(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.to_out(squared_relu(hidden))
        return out


class Projection(nn.Module):
    """The compressor of factor 1: a linear map where the widths differ, else nothing."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.map = nn.Identity() if dim_in == dim_out else Linear(dim_in, dim_out, bias=False)

    def init_state(self, spec: StateSpec) -> None:
        return None

    def forward(self, x: Tensor, skip: int = 0, state: None = None, source: Source | None = None) -> Tensor:
        """See `Compressor.forward`."""
        out: Tensor
        if source is None or isinstance(self.map, nn.Identity):
            out = self.map(x)
        else:
            products = self.map(source.table)
            out = F.embedding(source.rows, precise(products)).to(products.dtype)
        return out
