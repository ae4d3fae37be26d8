"""Attention, and the choice of what computes it: XLA, cuDNN's fused kernel, or the Pallas kernel for TPUs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mvdjax.errors import UserError
from mvdjax.models import placement

IMPLEMENTATIONS = ('auto', 'xla', 'cudnn', 'pallas')
PALLAS_BLOCK = 128  # lengths that the Pallas kernel takes are multiples of it
PALLAS_KEYS = 2048  # keys that one step of the kernel may hold: their logits have to fit into a core's fast memory


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None, *, implementation: str = 'auto'
) -> jax.Array:
    """softmax(q k^T / sqrt(head_dim) + bias) v, with float32 logits and softmax whatever the inputs' dtype.

    Args:
      q: (b, queries, heads, head_dim).
      k: (b, keys, heads, head_dim).
      v: likewise.
      bias: added to the logits, (b or 1, heads or 1, queries, keys), or None.
      implementation: see `choose`.

    Returns:
      (b, queries, heads, head_dim) of q's dtype.

    Raises:
      UserError: an implementation that cannot be had here for these inputs.
    """
    chosen = choose(
        implementation,
        dtype=q.dtype,
        head_dim=q.shape[-1],
        lengths=(q.shape[1], k.shape[1]),
        biased=bias is not None,
    )
    if chosen == 'pallas':
        return pallas_attention(q, k, v, bias)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation='cudnn' if chosen == 'cudnn' else 'xla')


def choose(
    wanted: str,
    *,
    dtype: Any,
    head_dim: int,
    lengths: tuple[int, int],
    biased: bool,
    device: jax.Device | None = None,
) -> str:
    """What computes attention: 'xla', 'cudnn' or 'pallas'.

    'auto' takes cuDNN where it can (see `_cudnn_lacks`), XLA elsewhere and where there is a bias: nobody has run cuDNN
    with these models' biases yet, nor timed the Pallas kernel for them, so that both come by name only.

    Args:
      wanted: one of `IMPLEMENTATIONS`.
      dtype: of queries, keys and values.
      head_dim: channels per head.
      lengths: queries and keys.
      biased: whether there is a bias.
      device: one of those that will compute; None asks the active placement.

    Raises:
      UserError: no such implementation, or not for these inputs on this device; the message says why.
    """
    if wanted not in IMPLEMENTATIONS:
        raise UserError(f'attention must be one of {", ".join(IMPLEMENTATIONS)}, not {wanted!r}')
    device = _device() if device is None else device
    if wanted == 'auto':
        return 'xla' if biased or _cudnn_lacks(dtype, head_dim, lengths, biased, device) else 'cudnn'
    lacks = ''
    if wanted == 'cudnn':
        lacks = _cudnn_lacks(dtype, head_dim, lengths, biased, device)
    if wanted == 'pallas' and device.platform != 'tpu':
        lacks = f'a TPU, and this is a {device.platform}'
    if lacks:
        raise UserError(f"attention={wanted!r} needs {lacks}; 'auto' takes what there is")
    return wanted


def _cudnn_lacks(dtype: Any, head_dim: int, lengths: tuple[int, int], biased: bool, device: jax.Device) -> str:
    """What cuDNN's fused attention needs and is not given; '' if it can be used (conditions of jax.nn)."""
    if device.platform not in ('gpu', 'cuda'):
        return f'an NVIDIA GPU, and this is a {device.platform}'
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # AMD's are names
        return 'an NVIDIA GPU'
    largest = 256 if capability >= 9 else 128
    if capability < 8:
        return f'compute capability 8.0 (Ampere) or later, and this GPU has {capability}'
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f'16-bit inputs (dtype bfloat16), and these are {jnp.dtype(dtype)}'
    if head_dim % 8 or head_dim > largest:
        return f'heads of at most {largest} channels, a multiple of 8, and these have {head_dim}'
    if biased and (lengths[0] % 2 or lengths[1] % 2):
        return f'even lengths where there is a bias, and these are {lengths[0]} and {lengths[1]}'
    return ''


def _device() -> jax.Device:
    """One of the devices that will compute: of the active placement (which may be a machine that is not here)."""
    active = placement.current()
    return active.device if active else jax.devices()[0]


def pallas_attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`attention` by the Pallas kernel, on every device's own rows and heads: the compiler cannot split a kernel."""
    active = placement.current()
    if active is None:
        return _kernel(q, k, v, bias)
    rows, heads = ('data', 'fsdp'), 'tensor' if q.shape[2] % active.mesh.shape['tensor'] == 0 else None
    spec = P(rows, None, heads, None)
    specs = [spec] * 3
    if bias is not None:
        specs.append(P(rows if bias.shape[0] > 1 else None, heads if bias.shape[1] > 1 else None, None, None))
    inputs = (q, k, v) if bias is None else (q, k, v, bias)
    return jax.shard_map(_kernel, mesh=active.mesh, in_specs=tuple(specs), out_specs=spec, check_vma=False)(*inputs)


def _kernel(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """JAX's flash attention for TPUs: lengths are padded, and segments keep padding and tokens apart."""
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    b, queries, heads, head_dim = q.shape
    keys = k.shape[1]
    # The kernel's own scale multiplies the bias too, so that q is scaled beforehand.
    q = (q.astype(jnp.float32) * head_dim**-0.5).astype(q.dtype)
    more_q, more_k = -queries % PALLAS_BLOCK, -keys % PALLAS_BLOCK
    q = jnp.pad(q, ((0, 0), (0, more_q), (0, 0), (0, 0))).swapaxes(1, 2)
    k, v = (jnp.pad(x, ((0, 0), (0, more_k), (0, 0), (0, 0))).swapaxes(1, 2) for x in (k, v))
    if bias is not None:
        bias = jnp.broadcast_to(bias, (b, heads, queries, keys))
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, more_q), (0, more_k)))
    segments = flash.SegmentIds(
        jnp.broadcast_to(jnp.arange(queries + more_q) < queries, (b, queries + more_q)).astype(jnp.int32),
        jnp.broadcast_to(jnp.arange(keys + more_k) < keys, (b, keys + more_k)).astype(jnp.int32),
    )
    y = flash.flash_attention(q, k, v, bias, segments, block_sizes=_blocks(flash, keys + more_k))
    return y.swapaxes(1, 2)[:, :queries]


def _blocks(flash: Any, keys: int) -> Any:
    """Blocks of 128 queries against all keys, or as many of them as fit and divide."""
    short = PALLAS_BLOCK
    wide = max(n for n in range(short, min(keys, PALLAS_KEYS) + 1, short) if keys % n == 0)
    return flash.BlockSizes(
        block_q=short,
        block_k_major=wide,
        block_k=wide,
        block_b=1,
        block_q_major_dkv=short,
        block_k_major_dkv=short,
        block_k_dkv=short,
        block_q_dkv=short,
        block_k_major_dq=wide,
        block_k_dq=wide,
        block_q_dq=short,
    )
