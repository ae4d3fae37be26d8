"""Transformer layers shared by every encoder and decoder: attention, MLP, drop path, and the stack of blocks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from mvdjax.errors import UserError
from mvdjax.models import placement
from mvdjax.models.attention import attention

NORM_EPSILON = 1e-6  # MAE, VideoMAE and MVD all build their LayerNorms with it
# What a block keeps for the backward pass; docs/performance.md has what each costs and saves.
REMAT_POLICIES = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'attention': jax.checkpoint_policies.save_only_these_names('qkv', 'attention'),
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=['block_input'],
        offload_src='device',
        offload_dst='pinned_host',
    ),
}

# The originals initialise every linear layer with xavier uniform, the fused qkv as one (D, 3D) matrix.
linear_init = nn.initializers.xavier_uniform()
token_init = nn.initializers.normal(0.02)


def check_remat(remat: str) -> None:
    """Raises UserError for what is no key of `REMAT_POLICIES`."""
    if remat not in REMAT_POLICIES:
        raise UserError(f'remat must be one of {", ".join(REMAT_POLICIES)}, not {remat!r}')


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


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU: x times the share of the normal distribution below x."""
    return _wide_gelu(x) if x.dtype == jnp.float32 else nn.gelu(x, approximate=False)


@jax.custom_jvp
def _wide_gelu(x: jax.Array) -> jax.Array:
    # By `erf`, as PyTorch's, where Flax's takes `erfc`, which costs a fifth more on a CPU. The backward pass keeps the
    # slope alone.
    return _value_and_slope(x)[0]


def _value_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    below = 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)
    return x * below, below + x * jnp.exp(-0.5 * x * x) * float((2 * np.pi) ** -0.5)


@_wide_gelu.defjvp
def _wide_gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    value, slope = _value_and_slope(*primals)
    return value, slope * tangents[0]


class Attention(nn.Module):
    """Multi-head self-attention; the kernels keep the heads as an axis, so that `tensor` sharding can split them.

    Attributes:
      heads: number of heads; must divide the width.
      qkv_bias: 'full' (one bias for q, k and v: MAE) or 'qv' (none for k: VideoMAE, MVD).
      attention: what computes it, see `attention.choose`.
      dtype: compute dtype; logits and softmax are float32 always.
    """

    heads: int
    qkv_bias: str
    attention: str
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
        qkv = checkpoint_name(qkv, 'qkv')
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.qkv_bias == 'qv':
            q += self.param('q_bias', nn.initializers.zeros, shape).astype(self.dtype)
            v += self.param('v_bias', nn.initializers.zeros, shape).astype(self.dtype)
        y = checkpoint_name(attention(q, k, v, implementation=self.attention), 'attention')
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
        y = gelu(y)
        return nn.Dense(x.shape[-1], kernel_init=self.kernel_init, dtype=self.dtype, name='fc2')(y)


class Block(nn.Module):
    """Pre-norm transformer block. `stochastic` says at build time whether drop path can act at all."""

    heads: int
    mlp_ratio: float
    qkv_bias: str
    stochastic: bool
    norm_epsilon: float
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array) -> tuple[jax.Array, None]:
        """(b, n, d) and the drop-path rate of this layer -> ((b, n, d), None), the signature `nn.scan` wants."""

        def branch(y: jax.Array) -> jax.Array:
            return drop_path(y, rate, self.make_rng('drop_path')) if self.stochastic else y

        x = checkpoint_name(placement.keep_rows(x), 'block_input')
        y = layer_norm('norm1', self.dtype, self.norm_epsilon)(x)
        y = Attention(self.heads, self.qkv_bias, self.attention, self.dtype, name='attn')(y)
        x = x + branch(y)
        hidden = round(self.mlp_ratio * x.shape[-1])
        y = Mlp(hidden, self.dtype, name='mlp')(layer_norm('norm2', self.dtype, self.norm_epsilon)(x))
        return x + branch(y), None


class Transformer(nn.Module):
    """A stack of blocks, its parameters stacked on a leading depth axis whether it is scanned or unrolled.

    Attributes:
      depth: number of blocks.
      heads: heads per block.
      mlp_ratio: hidden width of the MLP over the width.
      qkv_bias: see `Attention`.
      drop_path: rate of the last block; block i has i / (depth - 1) of it.
      norm_epsilon: of every LayerNorm.
      remat: what the backward pass finds kept: 'none' (everything), 'dots' (outputs of linear layers), 'attention'
        (queries, keys, values and attention's output), 'full' (block inputs), 'offload' (block inputs, in the memory
        of the host); the rest is computed again.
      scan: one compiled block for all; False writes them out one after the other, on the same parameters.
      attention: what computes it, see `attention.choose`.
      dtype: compute dtype.
    """

    depth: int
    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: str = 'qv'
    drop_path: float = 0.0
    norm_epsilon: float = NORM_EPSILON
    remat: str = 'none'
    scan: bool = True
    attention: str = 'auto'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(b, n, d) -> (b, n, d)."""
        check_remat(self.remat)
        body: Any = Block
        policy = REMAT_POLICIES[self.remat]
        if not self.is_initializing():
            body = placement.gathering(Block, 'blocks', self.depth, self.dtype)
            if body is not Block and policy is None:
                policy = placement.save_all_but_gathered
        if policy is not None:
            body = nn.remat(body, prevent_cse=not self.scan, policy=policy)
        stack = nn.scan(
            body,
            variable_axes={'params': 0},
            split_rngs={'params': True, 'drop_path': True},
            length=self.depth,
            unroll=1 if self.scan else self.depth,
        )
        rates = np.linspace(0.0, self.drop_path, self.depth, dtype=np.float32)
        x, _ = stack(
            self.heads,
            self.mlp_ratio,
            self.qkv_bias,
            train and self.drop_path > 0,
            self.norm_epsilon,
            self.attention,
            self.dtype,
            name='blocks',
        )(x, jnp.asarray(rates))
        return x
