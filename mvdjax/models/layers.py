"""Transformer layers shared by every encoder and decoder: attention, MLP, drop path, and the scanned stack."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mvdjax.errors import UserError

NORM_EPSILON = 1e-6  # MAE, VideoMAE and MVD all build their LayerNorms with it
REMAT_POLICIES = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# The originals initialise every linear layer with xavier uniform, the fused qkv as one (D, 3D) matrix.
linear_init = nn.initializers.xavier_uniform()
token_init = nn.initializers.normal(0.02)


def layer_norm(name: str, dtype: Any, epsilon: float = NORM_EPSILON) -> nn.LayerNorm:
    """LayerNorm with two-pass float32 statistics: Flax's one-pass variance loses digits on large means."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def drop_path(y: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    """Stochastic depth (arXiv 1603.09382): zeroes whole samples of a residual branch.

    Args:
      y: (b, ...) output of the branch.
      rate: scalar in [0, 1), may be traced (it is a scanned input of the stack).
      key: PRNG key.

    Returns:
      `y` with each sample kept with probability 1 - rate and then divided by it.
    """
    keep = 1.0 - rate
    kept = jax.random.bernoulli(key, keep, (y.shape[0],) + (1,) * (y.ndim - 1))
    return jnp.where(kept, y / keep, 0).astype(y.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; the kernels keep the heads as an axis, so that `tensor` sharding can split them.

    Attributes:
      heads: number of heads; must divide the width.
      qkv_bias: 'full' (one bias for q, k and v: MAE) or 'qv' (none for k: VideoMAE, MVD).
      dtype: compute dtype; logits and softmax are float32 always.
    """

    heads: int
    qkv_bias: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, n, d) -> (b, n, d)."""
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(f'width {width} is not a multiple of heads {self.heads}')
        if self.qkv_bias not in ('full', 'qv'):
            raise UserError(f"qkv_bias must be 'full' or 'qv', not {self.qkv_bias!r}")
        shape = (self.heads, width // self.heads)
        qkv = nn.DenseGeneral(
            (3, *shape),
            use_bias=self.qkv_bias == 'full',
            kernel_init=linear_init,
            dtype=self.dtype,
            name='qkv',
        )(x)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.qkv_bias == 'qv':
            q += self.param('q_bias', nn.initializers.zeros, shape).astype(self.dtype)
            v += self.param('v_bias', nn.initializers.zeros, shape).astype(self.dtype)
        y = jax.nn.dot_product_attention(q, k, v)
        return nn.DenseGeneral(width, axis=(-2, -1), kernel_init=linear_init, dtype=self.dtype, name='proj')(y)


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    hidden: int
    dtype: Any
    kernel_init: Any = linear_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., d) -> (..., d)."""
        y = nn.Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype, name='fc1')(x)
        y = nn.gelu(y, approximate=False)
        return nn.Dense(x.shape[-1], kernel_init=self.kernel_init, dtype=self.dtype, name='fc2')(y)


class Block(nn.Module):
    """Pre-norm transformer block. `stochastic` says at build time whether drop path can act at all."""

    heads: int
    mlp_ratio: float
    qkv_bias: str
    stochastic: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array) -> tuple[jax.Array, None]:
        """(b, n, d) and the drop-path rate of this layer -> ((b, n, d), None), the signature `nn.scan` wants."""

        def branch(y: jax.Array) -> jax.Array:
            return drop_path(y, rate, self.make_rng('drop_path')) if self.stochastic else y

        y = Attention(self.heads, self.qkv_bias, self.dtype, name='attn')(layer_norm('norm1', self.dtype)(x))
        x = x + branch(y)
        hidden = round(self.mlp_ratio * x.shape[-1])
        y = Mlp(hidden, self.dtype, name='mlp')(layer_norm('norm2', self.dtype)(x))
        return x + branch(y), None


class Transformer(nn.Module):
    """A stack of blocks, scanned over depth: one compiled block body, parameters stacked on a leading depth axis.

    Attributes:
      depth: number of blocks.
      heads: heads per block.
      mlp_ratio: hidden width of the MLP over the width.
      qkv_bias: see `Attention`.
      drop_path: rate of the last block; block i has i / (depth - 1) of it.
      remat: 'none', 'full' (keep only block inputs) or 'dots' (keep matmul outputs).
      scan: False unrolls the stack into `block_<i>` (tests and FLOP counts); `trees.unstack_blocks` converts.
      dtype: compute dtype.
    """

    depth: int
    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: str = 'qv'
    drop_path: float = 0.0
    remat: str = 'none'
    scan: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(b, n, d) -> (b, n, d)."""
        if self.remat not in ('none', *REMAT_POLICIES):
            raise UserError(f"remat must be 'none', 'full' or 'dots', not {self.remat!r}")
        body: Any = Block
        if self.remat != 'none':
            body = nn.remat(Block, prevent_cse=not self.scan, policy=REMAT_POLICIES[self.remat])
        stochastic = train and self.drop_path > 0
        args: Sequence[Any] = (self.heads, self.mlp_ratio, self.qkv_bias, stochastic, self.dtype)
        rates = np.linspace(0.0, self.drop_path, self.depth, dtype=np.float32)
        if not self.scan:
            for i in range(self.depth):
                x, _ = body(*args, name=f'block_{i}')(x, jnp.asarray(rates[i]))
            return x
        stack = nn.scan(
            body,
            variable_axes={'params': 0},
            split_rngs={'params': True, 'drop_path': True},
            length=self.depth,
        )
        x, _ = stack(*args, name='blocks')(x, jnp.asarray(rates))
        return x
