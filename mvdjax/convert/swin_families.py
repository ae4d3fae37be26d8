"""The published kinds of Swin checkpoints. Their tensors have the same names; which there are says the kind."""

import dataclasses
from collections.abc import Mapping, Sequence

from mvdjax.convert.layouts import Shape

PREFIXES = ('module.', 'backbone.', 'encoder.')  # each left out once, in this order, as the published loaders do
PATCHES = 'patch_embed.proj.weight'
BLOCK = 'layers.0.blocks.0.attn.relative_position_bias_table'
AVERAGE = 'ema_'  # mmcv's moving average: this, and the name with underscores for its dots


@dataclasses.dataclass(frozen=True)
class SwinFamily:
    """A published kind of checkpoint.

    Attributes:
      name: what --family calls it.
      text: what it is, for --help.
      patch_axes: of the convolution under `PATCHES`: 5 embeds clips, 4 images.
      both: whether a second patch embedding, of images, lies beside it.
      container: key that the state dict lies under in a pickled file.
      prefix: of the backbone's tensors in a file.
      head: of the vocabulary or of the classes, by the name of our leaf -> module.
      licence: of the weights that their authors published.
      drops: regexes of tensors that are made anew or belong to something else.
      corrected: the network behind the file computes what `VideoSwin(corrected=True)` does.
    """

    name: str
    text: str
    patch_axes: int
    both: bool
    container: str
    prefix: str
    head: Mapping[str, str]
    licence: str
    drops: Sequence[str]
    corrected: bool = False
    hub_class: str = ''

    def canonical(self, name: str) -> str:
        """A tensor's name without the prefixes that files put before it; heads keep theirs."""
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        return name

    def written(self, name: str) -> str:
        """A tensor's name in a file."""
        return name if name.startswith('cls_head.') else self.prefix + name

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether a file with these tensors can be of this family."""
        found = {self.canonical(name): shape for name, shape in shapes.items()}
        both = f'{PATCHES.replace("patch_embed", "patch_embed_2d")}' in found
        return BLOCK in found and len(found.get(PATCHES, ())) == self.patch_axes and both == self.both


_BUFFERS = (r'\.relative_position_index$', r'\.attn_mask$')  # both follow from the window and the map
SWIN_FAMILIES = {
    family.name: family
    for family in (
        SwinFamily(
            'bevt',
            'BEVT (xyzforever/BEVT): two-stream pretraining model',
            5,
            True,
            'state_dict',
            'backbone.',
            {'lm_head': 'cls_head.lm_head'},
            'Apache-2.0 if these are the weights that the authors published; else as their owner says',
            (*_BUFFERS, r'^cls_head\.vae_encoder\.'),
        ),
        SwinFamily(
            'video_swin',
            'Video Swin (mmaction, SwinTransformer/Video-Swin-Transformer): classifier, or the encoder alone',
            5,
            False,
            'state_dict',
            'backbone.',
            {'head': 'cls_head.fc_cls'},
            'Apache-2.0 if these are the weights that the authors published; else as their owner says',
            _BUFFERS,
        ),
        SwinFamily(
            'swin2d',
            "2-D Swin (microsoft/Swin-Transformer, BEVT's image stream): the encoder, with BEVT's fusion if it has one",
            4,
            False,
            'model',
            '',
            {'lm_head': 'lm_head'},
            'MIT (Swin) or Apache-2.0 (BEVT) if these are the weights that the authors published; else as their owner '
            'says',
            (*_BUFFERS, r'^head\.'),
            corrected=True,
        ),
    )
}
