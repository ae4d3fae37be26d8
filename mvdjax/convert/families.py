"""The published kinds of checkpoints: what each calls its tensors, and what its tensors say about the model."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from mvdjax.convert.layouts import Shape
from mvdjax.convert.swin_families import SWIN_FAMILIES, SwinFamily
from mvdjax.errors import UserError

# Hugging Face's files keep the names of transformers 4; the modules of transformers 5 have others: (file, module).
HF_MAE_NAMES = (
    ('vit.encoder.layer.', 'vit.layers.'),
    ('.attention.attention.query.', '.attention.q_proj.'),
    ('.attention.attention.key.', '.attention.k_proj.'),
    ('.attention.attention.value.', '.attention.v_proj.'),
    ('.attention.output.dense.', '.attention.o_proj.'),
    ('.intermediate.dense.', '.mlp.fc1.'),
    ('.output.dense.', '.mlp.fc2.'),
)
HF_VIDEOMAE_NAMES = (
    ('.attention.attention.q_bias', '.attention.attention.query.bias'),
    ('.attention.attention.v_bias', '.attention.attention.value.bias'),
)
# transformers 5.23 writes the decoder of ViTMAE under a name that it never had.
HF_MAE_MISTAKES = (('decoder.decoder_layers.', 'decoder.decoder_encoder.layer.'),)


@dataclasses.dataclass(frozen=True)
class BlockNames:
    """Modules and parameters inside a block. `qkv` is one fused module or three; `qv_biases` belong to 'qv' models."""

    norms: tuple[str, str]
    qkv: tuple[str, ...]
    qv_biases: tuple[str, str]
    proj: str
    fc: tuple[str, str]


TIMM_BLOCK = BlockNames(
    ('norm1', 'norm2'), ('attn.qkv',), ('attn.q_bias', 'attn.v_bias'), 'attn.proj', ('mlp.fc1', 'mlp.fc2')
)
HF_BLOCK = BlockNames(
    ('layernorm_before', 'layernorm_after'),
    ('attention.attention.query', 'attention.attention.key', 'attention.attention.value'),
    ('attention.attention.q_bias', 'attention.attention.v_bias'),
    'attention.output.dense',
    ('intermediate.dense', 'output.dense'),
)


@dataclasses.dataclass(frozen=True)
class EncoderNames:
    """An encoder's modules; `blocks` contains '{}'. `cls_token` is '' where there is none."""

    patch: str
    blocks: str
    norm: str
    position: str
    cls_token: str = ''


@dataclasses.dataclass(frozen=True)
class DecoderNames:
    """A decoder's modules; `blocks` contains '{}'. `position` is '' where the file never has one."""

    embed: str
    mask_token: str
    blocks: str
    norm: str
    head: str
    position: str = ''


@dataclasses.dataclass(frozen=True)
class Family:
    """A published kind of checkpoint.

    Attributes:
      name: what --family calls it.
      text: what it is, for --help.
      encoder: its encoder's names.
      block: names inside every block.
      pos_embed, qkv_bias: of encoder and decoders, see `models.vit.ViT`.
      decoders: our name of a decoder -> its names there; each may be missing from a file.
      classifier: (norm, linear layer) of a fine-tuned model, or None.
      decoder_heads: width -> heads of the published decoders.
      hub_class: the Hugging Face class of its folders, or ''.
      modern: (part of a name here, part of it in Hugging Face's newer modules).
      mistakes: (part of a name here, another spelling of it that was seen in files).
      licence: of the weights that their authors published.
      image: whether the patch embedding is a 2-D convolution.
      stores_tables: whether files hold the fixed position tables (MAE's do).
      drops: regexes of tensors that every file may leave behind.
      container: key that the state dict lies under in a pickled file.
    """

    name: str
    text: str
    encoder: EncoderNames
    block: BlockNames
    pos_embed: str
    qkv_bias: str
    decoders: Mapping[str, DecoderNames] = dataclasses.field(default_factory=dict)
    classifier: tuple[str, str] | None = None
    decoder_heads: Mapping[int, int] = dataclasses.field(default_factory=dict)
    hub_class: str = ''
    modern: Sequence[tuple[str, str]] = ()
    mistakes: Sequence[tuple[str, str]] = ()
    licence: str = 'CC-BY-NC-4.0 if these are the weights that the authors published; else as their owner says'
    image: bool = False
    stores_tables: bool = False
    drops: Sequence[str] = ()
    container: str = 'model'

    def canonical(self, name: str) -> str:
        """A tensor's name in this family's own spelling."""
        for here, there in (*self.modern, *self.mistakes):
            name = name.replace(there, here)
        return name

    def modernised(self, name: str) -> str:
        """A tensor's name in Hugging Face's newer modules."""
        for here, there in self.modern:
            name = name.replace(here, there)
        return name

    def fits(self, names: Iterable[str]) -> bool:
        """Whether a file with these tensors can be of this family."""
        found = {self.canonical(name) for name in names}
        first = {f'{self.encoder.patch}.weight', f'{self.encoder.blocks.format(0)}.{self.block.norms[0]}.weight'}
        if self.encoder.cls_token:
            first.add(self.encoder.cls_token)
        if self.classifier:
            first |= {f'{module}.weight' for module in self.classifier}
        # A plain encoder could be anybody's: the names that only the other kinds have must be absent.
        strange = {'head.weight', 'cls_token', 'fc_norm.weight', 'classifier.weight'} - first
        owners = {f'{decoder.embed}.weight' for decoder in self.decoders.values()}
        # Without a decoder, plain names may be of an encoder from anywhere, with whatever positions.
        plain = not self.encoder.cls_token and self.encoder.patch == _TIMM_ENCODER.patch and bool(self.decoders)
        return first <= found and not found & strange and not (plain and not found & owners)


_TIMM_ENCODER = EncoderNames('patch_embed.proj', 'blocks.{}', 'norm', 'pos_embed')
_HF_VIDEO_ENCODER = EncoderNames(
    'videomae.embeddings.patch_embeddings.projection', 'videomae.encoder.layer.{}', 'videomae.layernorm', ''
)
_VIDEO_HEADS = {192: 3, 384: 6, 512: 8, 640: 8, 768: 12}  # MVD README: S and B students as wide as their encoder
_MAE_HEADS = {512: 16}


def _mvd_decoder(name: str) -> DecoderNames:
    part = f'decoder_{name}'
    return DecoderNames(f'down_{name}', f'mask_token_{name}', f'{part}.blocks.{{}}', f'{part}.norm', f'{part}.head')


AnyFamily = Family | SwinFamily

_VIT_FAMILIES = {
    family.name: family
    for family in (
        Family(
            'mae',
            'MAE (facebookresearch/mae): pretraining model, or the encoder alone',
            dataclasses.replace(_TIMM_ENCODER, cls_token='cls_token'),
            TIMM_BLOCK,
            'sincos2d',
            'full',
            {
                'pixels': DecoderNames(
                    'decoder_embed',
                    'mask_token',
                    'decoder_blocks.{}',
                    'decoder_norm',
                    'decoder_pred',
                    'decoder_pos_embed',
                )
            },
            decoder_heads=_MAE_HEADS,
            image=True,
            stores_tables=True,
        ),
        Family(
            'videomae',
            'VideoMAE (MCG-NJU/VideoMAE): pretraining model, or the encoder alone',
            EncoderNames('encoder.patch_embed.proj', 'encoder.blocks.{}', 'encoder.norm', 'encoder.pos_embed'),
            TIMM_BLOCK,
            'sincos1d',
            'qv',
            {
                'pixels': DecoderNames(
                    'encoder_to_decoder', 'mask_token', 'decoder.blocks.{}', 'decoder.norm', 'decoder.head'
                )
            },
            decoder_heads=_VIDEO_HEADS,
        ),
        Family(
            'videomae-finetuned',
            'VideoMAE, fine-tuned classifier',
            _TIMM_ENCODER,
            TIMM_BLOCK,
            'sincos1d',
            'qv',
            classifier=('fc_norm', 'head'),
        ),
        Family(
            'mvd',
            'MVD (ruiwang2021/mvd): distilled student with its decoders, or the encoder alone',
            _TIMM_ENCODER,
            TIMM_BLOCK,
            'sincos3d',
            'qv',
            {'image': _mvd_decoder('img'), 'video': _mvd_decoder('vid')},
            decoder_heads=_VIDEO_HEADS,
        ),
        Family(
            'mvd-finetuned',
            'MVD, fine-tuned classifier',
            _TIMM_ENCODER,
            TIMM_BLOCK,
            'sincos3d',
            'qv',
            classifier=('fc_norm', 'head'),
        ),
        Family(
            'hf-mae',
            'Hugging Face ViTMAEForPreTraining',
            EncoderNames(
                'vit.embeddings.patch_embeddings.projection',
                'vit.encoder.layer.{}',
                'vit.layernorm',
                'vit.embeddings.position_embeddings',
                'vit.embeddings.cls_token',
            ),
            HF_BLOCK,
            'sincos2d',
            'full',
            {
                'pixels': DecoderNames(
                    'decoder.decoder_embed',
                    'decoder.mask_token',
                    'decoder.decoder_layers.{}',
                    'decoder.decoder_norm',
                    'decoder.decoder_pred',
                    'decoder.decoder_pos_embed',
                )
            },
            decoder_heads=_MAE_HEADS,
            hub_class='ViTMAEForPreTraining',
            modern=HF_MAE_NAMES,
            mistakes=HF_MAE_MISTAKES,
            image=True,
            stores_tables=True,
        ),
        Family(
            'hf-videomae',
            'Hugging Face VideoMAEForPreTraining',
            _HF_VIDEO_ENCODER,
            HF_BLOCK,
            'sincos1d',
            'qv',
            {
                'pixels': DecoderNames(
                    'encoder_to_decoder', 'mask_token', 'decoder.decoder_layers.{}', 'decoder.norm', 'decoder.head'
                )
            },
            decoder_heads=_VIDEO_HEADS,
            hub_class='VideoMAEForPreTraining',
            modern=HF_VIDEOMAE_NAMES,
        ),
        Family(
            'hf-videomae-finetuned',
            'Hugging Face VideoMAEForVideoClassification',
            _HF_VIDEO_ENCODER,
            HF_BLOCK,
            'sincos1d',
            'qv',
            classifier=('fc_norm', 'classifier'),
            hub_class='VideoMAEForVideoClassification',
            modern=HF_VIDEOMAE_NAMES,
        ),
    )
}
FAMILIES: dict[str, AnyFamily] = {**_VIT_FAMILIES, **SWIN_FAMILIES}


def get(name: str) -> AnyFamily:
    """A family by name.

    Raises:
      UserError: no such family; the message lists them.
    """
    if name not in FAMILIES:
        raise UserError(f'--family: there is no {name!r}; there are {", ".join(FAMILIES)}')
    return FAMILIES[name]


def recognise(shapes: Mapping[str, Shape]) -> AnyFamily:
    """The family of a file from the names and shapes of its tensors.

    Raises:
      UserError: none fits, or more than one does.
    """
    fitting = [family for family in FAMILIES.values() if family.fits(shapes)]
    if not fitting:
        shown = ', '.join(sorted(shapes)[:5])
        raise UserError(
            f'no known family has tensors like {shown}; the families are {", ".join(FAMILIES)}. An encoder alone under '
            'plain names may have any positions: if it is an MVD student, say --family=mvd'
        )
    if len(fitting) > 1:
        kinds = ' or '.join(f'--family={family.name}' for family in fitting)
        raise UserError(
            f'the tensors fit {len(fitting)} families, which differ in the fixed position table that no file holds: '
            f'say {kinds}'
        )
    return fitting[0]
