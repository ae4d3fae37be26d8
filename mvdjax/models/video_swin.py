"""Video Swin Transformer (2106.13230) with an image path that shares its blocks (BEVT, 2112.01529).

Blocks, patch merging, mask token and final norm are the same for clips and images; the patch embeddings are two. Every
block has a table of position biases; there are no other positions.

What the published code does beyond the papers, and weights were trained with (`corrected=False`):

- Where a window's height or width is cut to a smaller map, position biases are looked up as if tokens were numbered in
  the full window. At 224 pixels and windows of 7 this never happens.
- Padded positions are ordinary keys: they carry the bias of the `qkv` layer.
- Images: windows are never cut to the map, nothing is padded, and the regions that a shift keeps apart are kept apart
  in the blocks that do not shift, too.

`corrected=True` gives true offsets, hides padding, and cuts images like clips of one frame, at any size.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from mvdjax.errors import UserError
from mvdjax.models import placement
from mvdjax.models.embed import Grid, patchify
from mvdjax.models.layers import REMAT_POLICIES, Mlp, check_remat, drop_path, layer_norm, token_init
from mvdjax.models.vit import IMAGENET_MEAN, IMAGENET_STD
from mvdjax.models.window_attention import WindowAttention, cut

NORM_EPSILON = 1e-5  # of every LayerNorm here


@dataclasses.dataclass(frozen=True)
class Size:
    """Width of the first stage (it doubles after each), blocks and heads of the stages, and the window."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: Grid = (8, 7, 7)


# T, S, B, L are Video Swin's, with the window of its Kinetics models; the others are ours, for demos and tests.
VARIANTS = {
    'debug': Size(16, (1, 1, 2, 1), (1, 2, 2, 4), (2, 2, 2)),
    'nano': Size(32, (2, 2, 4, 2), (1, 2, 4, 8), (4, 4, 4)),
    'T': Size(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    'S': Size(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    'B': Size(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    'L': Size(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def swin_variant(name: str) -> dict[str, Any]:
    """The size of a named variant as keyword arguments of `VideoSwin`.

    Raises:
      UserError: no such variant; the message lists them.
    """
    if name not in VARIANTS:
        raise UserError(f'no Swin variant {name!r}; there are {", ".join(VARIANTS)}')
    return dataclasses.asdict(VARIANTS[name])


def uniform_init(fan: int) -> Callable[..., jax.Array]:
    """Uniform within 1 / sqrt(fan) on either side of zero: PyTorch's default of convolutions, weights and biases."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan**-0.5), fan**-0.5)

    return init


def _fill(x: jax.Array, multiple: Grid) -> jax.Array:
    """(b, t, h, w, c) with zeros at the end of the axes that are not multiples of `multiple`."""
    missing = [-n % m for n, m in zip(x.shape[1:4], multiple, strict=True)]
    return jnp.pad(x, ((0, 0), *((0, n) for n in missing), (0, 0))) if any(missing) else x


class PatchEmbed(nn.Module):
    """Linear embedding of cubes of pixels (a strided convolution), and a norm."""

    width: int
    patch: Grid
    dtype: Any

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        """(b, t, h, w, c) -> (b, t', h', w', width); sides that are no multiple of the patch are filled with zeros."""
        video = _fill(video, self.patch)
        grid = [n // p for n, p in zip(video.shape[1:4], self.patch, strict=True)]
        x = patchify(video, self.patch).astype(self.dtype)
        init = uniform_init(x.shape[-1])
        x = nn.Dense(self.width, kernel_init=init, bias_init=init, dtype=self.dtype, name='proj')(x)
        return layer_norm('norm', self.dtype, NORM_EPSILON)(x).reshape(x.shape[0], *grid, self.width)


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, t, h, w, c) -> (b, t, h', w', 2 * c); an odd height or width is filled with zeros."""
        x = _fill(x, (1, 2, 2))
        b, t, h, w, c = x.shape
        # Of the four neighbours, the column is the slow axis: (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.reshape(b, t, h // 2, 2, w // 2, 2, c).transpose(0, 1, 2, 4, 5, 3, 6).reshape(b, t, h // 2, w // 2, 4 * c)
        x = layer_norm('norm', self.dtype, NORM_EPSILON)(x)
        return nn.Dense(2 * c, use_bias=False, kernel_init=token_init, dtype=self.dtype, name='reduction')(x)


class Block(nn.Module):
    """Pre-norm block with attention within windows."""

    heads: int
    window: Grid
    mlp_ratio: float
    corrected: bool
    attention: str
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, shifted: bool, image: bool, rate: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """One block.

        Args:
          x: (b, t, h, w, c).
          shifted: whether its windows are shifted.
          image: whether x is an image's map.
          rate: of drop path; None keeps every branch.
          key: of drop path.

        Returns:
          The same shape.
        """

        def branch(y: jax.Array, number: int) -> jax.Array:
            return y if rate is None else drop_path(y, rate, jax.random.fold_in(key, number))

        x = checkpoint_name(placement.keep_rows(x), 'block_input')
        windows = cut(x.shape[1:4], self.window, shifted, image, self.corrected)
        y = windows.split(layer_norm('norm1', self.dtype, NORM_EPSILON)(x))
        y = WindowAttention(self.heads, self.window, self.corrected, self.attention, self.dtype, name='attn')(
            y, windows
        )
        x = x + branch(windows.join(y), 0)
        mlp = Mlp(round(self.mlp_ratio * x.shape[-1]), self.dtype, token_init, name='mlp')
        return x + branch(mlp(layer_norm('norm2', self.dtype, NORM_EPSILON)(x)), 1)


class Stage(nn.Module):
    """Blocks of one width, every second one shifted; their parameters are stacked on a leading depth axis.

    Attributes:
      depth: number of blocks.
      heads, window, mlp_ratio, corrected, attention, dtype: see `Block`.
      remat, scan: see `VideoSwin`.
    """

    depth: int
    heads: int
    window: Grid
    mlp_ratio: float
    corrected: bool
    remat: str
    scan: bool
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, image: bool, rates: np.ndarray | None) -> jax.Array:
        """(b, t, h, w, c), and the drop-path rate of each block if any may act -> the same shape."""
        block = Block(self.heads, self.window, self.mlp_ratio, self.corrected, self.attention, self.dtype, parent=None)
        smallest = jnp.zeros((1, 1, *self.window[1:], x.shape[-1]))

        def init_blocks(key: jax.Array) -> Any:
            one = functools.partial(block.init, x=smallest, shifted=False, image=False)
            return jax.vmap(lambda k: one(k)['params'])(jax.random.split(key, self.depth))

        # `param` would trace all of `init_blocks` again, for its shapes, whenever the model is applied.
        known = self.has_variable('params', 'blocks')
        params = self.get_variable('params', 'blocks') if known else self.param('blocks', init_blocks)
        if self.is_initializing():
            return x
        pairs = self.depth // 2 if self.scan and self.depth > 2 else 0
        inputs: dict[str, Any] = {'params': params}
        if rates is not None:
            inputs['rate'] = jnp.asarray(rates)
            inputs['key'] = jax.random.split(self.make_rng('drop_path'), self.depth)

        gather = placement.gatherer('blocks', self.depth, self.dtype)

        def apply(x: jax.Array, one: dict[str, Any], shifted: bool) -> jax.Array:
            params = one['params'] if gather is None else gather(one['params'])
            return block.apply({'params': params}, x, shifted, image, one.get('rate'), one.get('key'))

        policy = REMAT_POLICIES[self.remat]
        if gather is not None and policy is None:
            policy = placement.save_all_but_gathered
        if policy is not None:
            apply = jax.checkpoint(apply, prevent_cse=not pairs, policy=policy, static_argnums=2)

        def pair(x: jax.Array, two: dict[str, Any]) -> tuple[jax.Array, None]:
            for i in range(2):
                x = apply(x, jax.tree.map(lambda a, i=i: a[i], two), bool(i))
            return x, None

        if pairs:
            head = jax.tree.map(lambda a: a[: 2 * pairs].reshape(pairs, 2, *a.shape[1:]), inputs)
            x, _ = jax.lax.scan(pair, x, head)
        for i in range(2 * pairs, self.depth):
            x = apply(x, jax.tree.map(lambda a, i=i: a[i], inputs), i % 2 == 1)
        return x


class VideoSwin(nn.Module):
    """Video Swin.

    Attributes:
      width, depths, heads: its size, see `VARIANTS`.
      window: (frames, rows, columns) of a window, in tokens; odd blocks shift it by half.
      patch: (frames, rows, columns) of a token of the first stage; an image's has one frame.
      mlp_ratio: hidden width of the MLPs over the width.
      corrected: see the module's documentation.
      mean, std: one value per channel, of pixels in [0, 1]: what the input is expected to be normalised with.
      drop_path: rate of the last block; it rises linearly from 0 over the blocks of all stages.
      remat: what the backward pass finds kept of a block, see `layers.Transformer`.
      scan: run the pairs of blocks of a deep stage in a compiled loop; parameters are the same either way.
      attention: what computes it, see `attention.choose`; with 'cudnn', windows of an odd number of tokens, as an
        image's of 7 x 7, are computed by XLA.
      dtype: compute dtype; parameters, norms' statistics, logits and softmax are float32 always.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: Grid = (8, 7, 7)
    patch: Grid = (2, 4, 4)
    mlp_ratio: float = 4.0
    corrected: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    drop_path: float = 0.0
    remat: str = 'none'
    scan: bool = True
    attention: str = 'auto'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        video: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        image: bool = False,
        neck: Callable[[dict[str, jax.Array]], jax.Array] | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes a video or an image.

        Args:
          video: (b, t, h, w, c) normalised float; an image has t = 1.
          mask: (b, t', h', w') bool of any grid, resized to the patches by nearest neighbour; the mask token takes the
            place of the embeddings where it is True. None: no mask, and then no mask token among the parameters.
          train: whether drop path acts (then a 'drop_path' rng is needed).
          image: take the image path.
          neck: makes one map of the stages' maps, before the final norm; None takes the last stage's.

        Returns:
          ((b, t', h', w', c') map after the final norm,
           {'patch_embed': embeddings before the mask, 'stage1', ...: map of each stage before its patch merging}).

        Raises:
          UserError: a value out of range, an input that is no image, or one the published image path cannot cut.
        """
        self._check(video, image)
        patch = (1, *self.patch[1:]) if image else self.patch
        name = 'patch_embed_2d' if image else 'patch_embed'
        embed = placement.gathering(PatchEmbed, name, None, self.dtype)
        x = placement.keep_rows(embed(self.width, patch, self.dtype, name=name)(placement.keep_rows(video)))
        info = {'patch_embed': x}
        if mask is not None:
            token = self.param('mask_token', token_init, (self.width,)).astype(self.dtype)
            x = jnp.where(resize_mask(mask, x.shape[1:4])[..., None], token, x)
        rates = np.linspace(0.0, self.drop_path, sum(self.depths), dtype=np.float32)
        for i, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if i:
                if image and not self.corrected and (x.shape[2] % 2 or x.shape[3] % 2):
                    raise UserError(
                        f'patch merging cannot halve a map of {x.shape[2]}x{x.shape[3]} tokens, and the published '
                        'image path pads nothing: choose another image size, or corrected=True'
                    )
                merge = placement.gathering(PatchMerging, f'merge{i}', None, self.dtype)
                x = merge(self.dtype, name=f'merge{i}')(placement.keep_rows(x))
            stage = Stage(
                depth,
                heads,
                self.window,
                self.mlp_ratio,
                self.corrected,
                self.remat,
                self.scan,
                self.attention,
                self.dtype,
                name=f'stage{i + 1}',
            )
            own = rates[sum(self.depths[:i]) :][:depth]
            x = placement.keep_rows(stage(x, image, own if train and self.drop_path > 0 else None))
            info[f'stage{i + 1}'] = x
        x = x if neck is None else neck(info)
        return layer_norm('norm', self.dtype, NORM_EPSILON)(x), info

    def _check(self, video: jax.Array, image: bool) -> None:
        """Raises UserError for what the attributes cannot be, and for an image of several frames."""
        check_remat(self.remat)
        if len(self.depths) != len(self.heads) or not self.depths or min(self.depths) < 1:
            raise UserError(f'depths {self.depths} and heads {self.heads} need one number above 0 per stage each')
        if min(*self.window, *self.patch) < 1:
            raise UserError(f'window {self.window} and patch {self.patch} must be above 0')
        if image and video.shape[1] != 1:
            raise UserError(f'an image is a clip of one frame, not of {video.shape[1]}')

    @property
    def out_width(self) -> int:
        """Channels of the last stage."""
        return self.width * 2 ** (len(self.depths) - 1)


def resize_mask(mask: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """(b, t, h, w) bool -> (b, *grid), nearest neighbour: place i of n takes i * old // n."""
    mask = mask.astype(bool)
    for axis, places in enumerate(grid, start=1):
        if mask.shape[axis] != places:
            mask = jnp.take(mask, np.arange(places) * mask.shape[axis] // places, axis=axis)
    return mask
