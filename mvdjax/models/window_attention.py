"""Attention within (shifted) windows of a map, with relative position biases (Swin 2103.14030, Video Swin 2106.13230).

How a map is cut is known when a model is built: everything about it is computed here with NumPy, once for a shape, and
ends in the program as a few small constants. Where nothing has to be padded, rolled or masked, nothing is.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from mvdjax.errors import UserError
from mvdjax.models import attention
from mvdjax.models.embed import Grid
from mvdjax.models.layers import token_init

FORBIDDEN = -100.0  # added to the logits of pairs that may not see each other; the published value, not minus infinity
PADDING = 127  # region of positions that were padded; the others are below 27


@dataclasses.dataclass(frozen=True)
class Windows:
    """How one block cuts a map.

    Attributes:
      size: of a window, in tokens along time, height, width.
      shift: the map is rolled back by so many tokens before it is cut.
      padding: zeros appended to each axis before that.
      count: windows along each axis.
      regions: (windows, tokens of a window) int8, or None; only tokens of one region see each other.
    """

    size: Grid
    shift: Grid
    padding: Grid
    count: Grid
    regions: np.ndarray | None

    def split(self, x: jax.Array) -> jax.Array:
        """(b, t, h, w, c) -> (b, windows, tokens of a window, c), padded and rolled."""
        if any(self.padding):
            x = jnp.pad(x, ((0, 0), *((0, n) for n in self.padding), (0, 0)))
        axes = [i for i in range(3) if self.shift[i]]
        if axes:
            x = jnp.roll(x, [-self.shift[i] for i in axes], [i + 1 for i in axes])
        return _split(x, self.count, self.size)

    def join(self, x: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        (n0, n1, n2), (s0, s1, s2) = self.count, self.size
        x = x.reshape(x.shape[0], n0, n1, n2, s0, s1, s2, x.shape[-1]).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        x = x.reshape(x.shape[0], n0 * s0, n1 * s1, n2 * s2, x.shape[-1])
        axes = [i for i in range(3) if self.shift[i]]
        if axes:
            x = jnp.roll(x, [self.shift[i] for i in axes], [i + 1 for i in axes])
        if any(self.padding):
            t, h, w = (s - p for s, p in zip(x.shape[1:4], self.padding, strict=True))
            x = x[:, :t, :h, :w]
        return x


def cut(grid: Grid, window: Grid, shifted: bool, image: bool, corrected: bool) -> Windows:
    """How a block cuts its map.

    A clip's window is never longer than the map, and not shifted along an axis that it spans. As published, an image's
    window is neither cut to the map nor is the map padded, and every block keeps apart the regions that a shift
    brings together, the blocks that do not shift too; and padded positions of a clip are keys like all others.

    Args:
      grid: (t, h, w) of the map.
      window: (t, h, w) of the full window.
      shifted: whether this is a shifted block (every second one is).
      image: whether the map is an image's, t = 1.
      corrected: cut images as clips are cut, and let nothing see padded positions.

    Raises:
      UserError: an image's map does not divide into windows.
    """
    published = image and not corrected
    size = (1, *window[1:]) if published else tuple(min(n, w) for n, w in zip(grid, window, strict=True))
    padding = tuple(-n % s for n, s in zip(grid, size, strict=True))
    if published and any(padding):
        raise UserError(
            f'a map of {grid[1]}x{grid[2]} tokens does not divide into windows of {window[1]}x{window[2]}, and the '
            'published image path pads nothing: choose another image size or window, or corrected=True'
        )
    full = tuple(w // 2 if n > w or published else 0 for n, w in zip(grid, window, strict=True))
    full = (0, *full[1:]) if image else full
    shift = full if shifted else (0, 0, 0)
    padded = tuple(n + p for n, p in zip(grid, padding, strict=True))
    regions = _regions(padded, size, full if published else shift)
    if corrected and any(padding):
        outside = np.ones(padded, bool)
        outside[: grid[0], : grid[1], : grid[2]] = False
        regions[np.roll(outside, [-s for s in shift], (0, 1, 2))] = PADDING
    count = tuple(n // s for n, s in zip(padded, size, strict=True))
    by_window = _split(regions[None, ..., None], count, size)[0, :, :, 0]
    apart = (by_window != by_window[:, :1]).any()
    return Windows(_grid(size), _grid(shift), _grid(padding), _grid(count), by_window if apart else None)


def _grid(sides: tuple[int, ...]) -> Grid:
    t, h, w = sides
    return t, h, w


def _split(x: Any, count: tuple[int, ...], size: tuple[int, ...]) -> Any:
    """(b, t, h, w, c) -> (b, windows, tokens of a window, c), of NumPy or JAX."""
    (n0, n1, n2), (s0, s1, s2) = count, size
    x = x.reshape(x.shape[0], n0, s0, n1, s1, n2, s2, x.shape[-1]).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(x.shape[0], n0 * n1 * n2, s0 * s1 * s2, x.shape[-1])


def _regions(grid: tuple[int, ...], size: tuple[int, ...], shift: tuple[int, ...]) -> np.ndarray:
    """Numbers of the parts of a rolled map that were not neighbours before it was rolled. int8 of shape `grid`."""
    regions = np.zeros(grid, np.int8)
    for axis, (n, w, s) in enumerate(zip(grid, size, shift, strict=True)):
        if s:
            place = np.arange(n)
            part = (place >= n - w).astype(np.int8) + (place >= n - s)
            regions = 3 * regions + part.reshape([-1 if i == axis else 1 for i in range(3)]).astype(np.int8)
    return regions


def position_bias(table: jax.Array, window: Grid, size: Grid, corrected: bool) -> jax.Array:
    """What the table adds to the logits of each pair of tokens of a window.

    Each axis is spread by a product with a constant of zeros and ones: exact, and its gradient is a product too, where
    a gather's is a scatter, which is slow and on GPUs of no fixed order.

    Args:
      table: (2 * Wt - 1, 2 * Wh - 1, 2 * Ww - 1, heads) float32 of the full window (Wt, Wh, Ww); place
        (dt + Wt - 1, dh + Wh - 1, dw + Ww - 1) is for a query that lies (dt, dh, dw) behind its key.
      window: the full window.
      size: the window as it was cut to the map.
      corrected: look up the true offset. As published, tokens are numbered as in the full window: where height or
        width was cut, token n gets the place of token n of the full window.

    Returns:
      (heads, tokens, tokens) float32: query, key.
    """
    spread = size if corrected else (size[0], *window[1:])
    for axis, (w, s) in enumerate(zip(window, spread, strict=True)):
        table = jax.lax.slice_in_dim(table, w - s, w + s - 1, axis=axis)
    # [query, key, place]
    t, h, w = (
        np.eye(2 * s - 1, dtype=np.float32)[np.subtract.outer(np.arange(s), np.arange(s)) + s - 1] for s in spread
    )
    exact = jax.lax.Precision.HIGHEST
    bias = jnp.einsum('xyzn,adx->nyzad', table, t, precision=exact)
    bias = jnp.einsum('nyzad,bey->nzadbe', bias, h, precision=exact)
    # The heads are a batch axis of both sides: remat='dots' keeps the products that have none, those with weights, and
    # is to compute this one, of heads x tokens x tokens for every block, again.
    w = jnp.broadcast_to(w, (bias.shape[0], *w.shape))
    bias = jnp.einsum('nzadbe,ncfz->nabcdef', bias, w, precision=exact)
    tokens, all_tokens = int(np.prod(size)), int(np.prod(spread))
    return bias.reshape(-1, all_tokens, all_tokens)[:, :tokens, :tokens]


def fused(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, windows: Windows, implementation: str
) -> jax.Array:
    """Attention within windows by a kernel that never writes the logits: to it, a window is `heads` heads more.

    So the bias, which differs between windows but not between clips, is handed over once for a batch; it is rounded to
    the queries' dtype.

    Args:
      q: (b, windows, tokens, heads, head_dim), not scaled.
      k: likewise.
      v: likewise.
      bias: (heads, tokens, tokens) float32.
      windows: how the map was cut.
      implementation: see `attention.choose`.

    Returns:
      The shape of q.
    """
    b, count, tokens, heads, head_dim = q.shape
    # Heads first: where they are split over devices, every device keeps its own with all their windows.
    bias = jnp.broadcast_to(bias[:, None], (heads, count, tokens, tokens))
    if windows.regions is not None:
        bias = jnp.where(_apart(windows), bias + FORBIDDEN, bias)
    bias = bias.reshape(1, heads * count, tokens, tokens).astype(q.dtype)
    q, k, v = (x.transpose(0, 2, 3, 1, 4).reshape(b, tokens, heads * count, head_dim) for x in (q, k, v))
    y = attention.attention(q, k, v, bias, implementation=implementation)
    return y.reshape(b, tokens, heads, count, head_dim).transpose(0, 3, 1, 2, 4)


def _apart(windows: Windows) -> jax.Array:
    """(windows, tokens, tokens) bool: query and key may not see each other."""
    regions = jnp.asarray(windows.regions)
    return regions[:, :, None] != regions[:, None, :]


@jax.custom_vjp
def weigh(logits: jax.Array, bias: jax.Array, apart: jax.Array | None, v: jax.Array) -> jax.Array:
    """Attention from its logits on, with a backward pass that goes over arrays of that size as seldom as can be.

    The softmax's gradient needs, for each query, the sum over keys of weights times their gradients; that is also the
    product of the output and its gradient, a hundredth of the size (FlashAttention, 2205.14135, appendix B.4). Where v
    is rounded to 16 bits it is summed up all the same: rounded otherwise than what it is taken from it would leave
    gradients of logits that do not sum to zero.

    Args:
      logits: (b, windows, heads, query, key) float32.
      bias: (heads, query, key) float32.
      apart: (windows, 1, query, key) bool, pairs that may not see each other; None where all may.
      v: (b, windows, key, heads, head_dim).

    Returns:
      (b, windows, query, heads, head_dim), of v's dtype.
    """
    return _weigh(logits, bias, apart, v)[0]


def _weigh(logits: jax.Array, bias: jax.Array, apart: jax.Array | None, v: jax.Array) -> tuple[jax.Array, Any]:
    logits = logits + bias
    if apart is not None:
        logits = jnp.where(apart, logits + FORBIDDEN, logits)
    weights = jax.nn.softmax(logits)
    y = jnp.einsum('bwhqk,bwkhd->bwqhd', weights.astype(v.dtype), v)
    y = checkpoint_name(y, 'attention')  # here, since the backward pass wants it, too
    return y, (weights, v, y)


def _weigh_backward(kept: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, None, jax.Array]:
    weights, v, y = kept
    dv = jnp.einsum('bwhqk,bwqhd->bwkhd', weights.astype(v.dtype), dy)
    dweights = jnp.einsum('bwqhd,bwkhd->bwhqk', dy, v)
    if v.dtype == jnp.float32:
        inner = jnp.sum(dy * y, axis=-1).swapaxes(2, 3)[..., None]
    else:
        inner = jnp.sum(weights * dweights, axis=-1, keepdims=True)
    dlogits = weights * (dweights - inner)
    return dlogits, jax.lax.platform_dependent(dlogits, cpu=_sum_by_product, default=_sum), None, dv


def _sum(x: jax.Array) -> jax.Array:
    """(b, windows, ...) -> (...)."""
    return x.sum((0, 1))


def _sum_by_product(x: jax.Array) -> jax.Array:
    """`_sum` in a third of the time on CPUs, where XLA adds up the rows of so large an array one element at a time."""
    return jnp.einsum('bw,bw...->...', jnp.ones(x.shape[:2], x.dtype), x, precision=jax.lax.Precision.HIGHEST)


weigh.defvjp(_weigh, _weigh_backward)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows; the kernels keep the heads as an axis, as `layers.Attention`'s do.

    Attributes:
      heads: number of heads; must divide the width.
      window: (t, h, w) of the full window, which the position table is for.
      corrected: see `position_bias`.
      attention: what computes it, see `attention.choose`.
      dtype: compute dtype; logits and softmax are float32 always, and biases but in fused kernels.
    """

    heads: int
    window: Grid
    corrected: bool
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, windows: Windows) -> jax.Array:
        """(b, windows, tokens of a window, c), cut as `windows` says -> the same shape."""
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(f'width {width} is not a multiple of heads {self.heads}')
        shape = (self.heads, width // self.heads)
        qkv = nn.DenseGeneral((3, *shape), kernel_init=token_init, dtype=self.dtype, name='qkv')(x)
        qkv = checkpoint_name(qkv, 'qkv')
        q, k, v = (qkv[:, :, :, i] for i in range(3))
        sides = tuple(2 * w - 1 for w in self.window)
        table = self.param('relative_position_table', token_init, (*sides, self.heads))
        bias = position_bias(table, self.window, windows.size, self.corrected)
        # cuDNN takes no odd number of tokens with a bias, as an image's 7 x 7; the clips beside it may have it.
        wanted = 'auto' if self.attention == 'cudnn' and x.shape[2] % 2 else self.attention
        chosen = attention.choose(
            wanted, dtype=q.dtype, head_dim=shape[1], lengths=(x.shape[2], x.shape[2]), biased=True
        )
        if chosen == 'xla':
            logits = jnp.einsum('bwqhd,bwkhd->bwhqk', q * shape[1] ** -0.5, k, preferred_element_type=jnp.float32)
            y = weigh(logits, bias, None if windows.regions is None else _apart(windows)[:, None], v)
        else:
            y = checkpoint_name(fused(q, k, v, bias, windows, chosen), 'attention')
        return nn.DenseGeneral(width, axis=(-2, -1), kernel_init=token_init, dtype=self.dtype, name='proj')(y)
