"""Mixup and CutMix of clips on the device, in the batch mode of timm, per group of samples."""

import dataclasses

import jax
import jax.numpy as jnp

from mvdjax.errors import UserError

CUTMIX_MODES = ('spatial', 'published')


@dataclasses.dataclass(frozen=True)
class Mix:
    """How to mix (defaults: the published fine-tuning).

    Attributes:
      mixup: alpha of mixup's Beta; 0 for no mixup.
      cutmix: alpha of CutMix's Beta; 0 for no CutMix.
      probability: that a group is mixed at all.
      switch: probability of CutMix where both are on.
      cutmix_mode: 'spatial' replaces a box of height x width in every frame; 'published' does what MVD's runs did:
        the box bounds index time and height, so frames yl:yh lose rows xl:xh while the labels are mixed by the area
        of the box over height x width (golden/data/README.md).
      group: samples that share one draw and are paired with their mirror image in the group; the published code
        draws once per GPU. 0: the whole (micro-)batch.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    cutmix_mode: str = 'spatial'
    group: int = 0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.cutmix_mode not in CUTMIX_MODES:
            raise UserError(f'mix.cutmix_mode must be one of {", ".join(CUTMIX_MODES)}, not {self.cutmix_mode!r}')
        if self.mixup < 0 or self.cutmix < 0 or not (self.mixup or self.cutmix):
            raise UserError('mix.mixup and mix.cutmix are alphas >= 0, one of them > 0; for no mixing set mix to None')


def cutmix_box(lam: jax.Array, cy: jax.Array, cx: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The box of a CutMix draw.

    Args:
      lam: share kept of the first sample, in [0, 1].
      cy: centre row, int in [0, height).
      cx: centre column, int in [0, width).
      height: rows of the frames.
      width: columns of the frames.

    Returns:
      ((yl, yh, xl, xh) int32, the share that the box really leaves).
    """
    ratio = jnp.sqrt(1.0 - lam)
    half_h = jnp.floor(height * ratio).astype(jnp.int32) // 2
    half_w = jnp.floor(width * ratio).astype(jnp.int32) // 2
    yl, yh = jnp.clip(cy - half_h, 0, height), jnp.clip(cy + half_h, 0, height)
    xl, xh = jnp.clip(cx - half_w, 0, width), jnp.clip(cx + half_w, 0, width)
    kept = 1.0 - (yh - yl) * (xh - xl) / (height * width)
    return jnp.stack([yl, yh, xl, xh]), kept


def mix_group(
    video: jax.Array, targets: jax.Array, lam: jax.Array, use_cutmix: jax.Array, center: jax.Array, mode: str
) -> tuple[jax.Array, jax.Array]:
    """Mixes one group with its mirror image.

    Args:
      video: (g, t, h, w, c) float.
      targets: (g, classes) distributions.
      lam: share of the first sample; 1 leaves the group alone.
      use_cutmix: bool, CutMix instead of mixup.
      center: (2,) int row and column of the CutMix box.
      mode: see `Mix.cutmix_mode`.

    Returns:
      The mixed video and targets.
    """
    t, h, w = video.shape[1:4]
    box, kept = cutmix_box(lam, center[0], center[1], h, w)
    frame, row, column = (
        jnp.arange(n).reshape(s) for n, s in ((t, (1, t, 1, 1, 1)), (h, (1, 1, h, 1, 1)), (w, (1, 1, 1, w, 1)))
    )
    first, second = (row, column) if mode == 'spatial' else (frame, row)
    inside = (first >= box[0]) & (first < box[1]) & (second >= box[2]) & (second < box[3])
    partner = video[::-1]
    mixed = jnp.where(use_cutmix, jnp.where(inside, partner, video), lam * video + (1.0 - lam) * partner)
    share = jnp.where(use_cutmix, kept, lam)
    return mixed, share * targets + (1.0 - share) * targets[::-1]


def mix(key: jax.Array, video: jax.Array, targets: jax.Array, config: Mix) -> tuple[jax.Array, jax.Array]:
    """Mixes a batch group by group.

    Args:
      key: PRNG key.
      video: (b, t, h, w, c) normalised float.
      targets: (b, classes) distributions.
      config: how.

    Returns:
      The mixed video and targets.

    Raises:
      UserError: the group size is odd or does not divide the batch.
    """
    batch = video.shape[0]
    size = config.group or batch
    if size % 2 or batch % size:
        raise UserError(f'mixing pairs samples: mix.group {size} must be even and divide the batch of {batch}')

    def one(args: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        key, video, targets = args
        apply, switch, mixup, cutmix, row, column = jax.random.split(key, 6)
        use_cutmix = jnp.asarray(config.cutmix > 0)
        if config.mixup > 0 and config.cutmix > 0:
            use_cutmix = jax.random.uniform(switch) < config.switch
        lam = jnp.where(
            use_cutmix,
            jax.random.beta(cutmix, config.cutmix or 1.0, config.cutmix or 1.0),
            jax.random.beta(mixup, config.mixup or 1.0, config.mixup or 1.0),
        )
        lam = jnp.where(jax.random.uniform(apply) < config.probability, lam, 1.0)
        h, w = video.shape[2:4]
        center = jnp.stack([jax.random.randint(row, (), 0, h), jax.random.randint(column, (), 0, w)])
        return mix_group(video, targets, lam, use_cutmix, center, config.cutmix_mode)

    groups = batch // size
    grouped = (video.reshape(groups, size, *video.shape[1:]), targets.reshape(groups, size, -1))
    mixed, mixed_targets = jax.vmap(lambda k, v, t: one((k, v, t)))(jax.random.split(key, groups), *grouped)
    return mixed.reshape(video.shape), mixed_targets.reshape(targets.shape)
