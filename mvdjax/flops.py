"""Model FLOPs by formula: what the mathematics of a step asks for, 2 per multiply-add, whatever a compiler makes of it.

Counted are matrix products: linear layers, patch embeddings, attention's two products. Norms, activations, softmax and
losses are not (1 to 2 % at published sizes), nor is what remat computes twice: these are the FLOPs that utilisation
(MFU) is defined with. All functions are of plain numbers and module attributes; nothing is traced.

A trained layer costs three times its forward pass: forward, and a product each for the gradients of its input and of
its weights. The patch embedding costs twice: pixels take no gradient. Frozen teachers cost one forward pass.
"""

import math

from mvdjax.models.embed import token_grid
from mvdjax.models.masked_vit import Decoder, MaskedViT
from mvdjax.models.vit import ViT

TRAINED = 3.0  # times a forward pass


def linear(tokens: int, inputs: int, outputs: int) -> float:
    """A dense layer on `tokens` rows."""
    return 2.0 * tokens * inputs * outputs


def transformer(tokens: int, width: int, depth: int, mlp_ratio: float) -> float:
    """Forward pass of a stack of blocks over one sample of `tokens`: qkv, logits, values, proj, fc1 and fc2."""
    hidden = round(mlp_ratio * width)
    projections = linear(tokens, width, 4 * width) + 2 * linear(tokens, width, hidden)
    attention = 2 * linear(tokens, width, tokens)
    return depth * (projections + attention)


def patch_embedding(vit: ViT, tokens: int) -> float:
    """Forward pass over `tokens` patches."""
    return linear(tokens, math.prod(vit.patch) * len(vit.mean), vit.width)


def encoder(vit: ViT, tokens: int) -> float:
    """Forward pass of a ViT over one sample of `tokens` patches; the class token is added here if there is one."""
    blocks = transformer(tokens + int(vit.cls_token), vit.width, vit.depth, vit.mlp_ratio)
    return patch_embedding(vit, tokens) + blocks


def trained_encoder(vit: ViT, tokens: int) -> float:
    """Forward and backward pass of a ViT over one sample of `tokens` patches."""
    return TRAINED * encoder(vit, tokens) - patch_embedding(vit, tokens)


def decoder(module: Decoder, encoded_width: int, encoded: int, masked: int) -> float:
    """Forward pass over one sample.

    Args:
      module: the decoder.
      encoded_width: width of the encoder's output.
      encoded: its tokens, with a class token if there is one.
      masked: tokens to predict; only these are projected to the output.
    """
    blocks = transformer(encoded + masked, module.width, module.depth, module.mlp_ratio)
    return linear(encoded, encoded_width, module.width) + blocks + linear(masked, module.width, module.out_dim)


def masked_vit(model: MaskedViT, video_shape: tuple[int, ...], num_masked: int) -> dict[str, float]:
    """Training FLOPs of a step of a masked autoencoder: {'encoder', 'decoders'}.

    Args:
      model: encoder and decoders.
      video_shape: (b, t, h, w, c) of the batch.
      num_masked: masked tokens per sample.
    """
    vit, samples = model.backbone, video_shape[0]
    visible = math.prod(token_grid(video_shape, vit.patch)) - num_masked
    encoded = visible + int(vit.cls_token)
    decoders = sum(decoder(d, vit.width, encoded, num_masked) for d in model.decoders.values())
    return {
        'encoder': samples * trained_encoder(vit, visible),
        'decoders': samples * TRAINED * decoders,
    }


def teacher(vit: ViT, video_shape: tuple[int, ...]) -> float:
    """A frozen ViT over all tokens of a batch of (b, t, h, w, c) clips, (b * frames, 1, h, w, c) for an image model."""
    return video_shape[0] * encoder(vit, math.prod(token_grid(video_shape, vit.patch)))


def classifier(vit: ViT, num_classes: int, video_shape: tuple[int, ...]) -> dict[str, float]:
    """Training FLOPs of a step of a ViT classifier on a (b, t, h, w, c) batch: {'encoder', 'head'}."""
    samples, tokens = video_shape[0], math.prod(token_grid(video_shape, vit.patch))
    return {
        'encoder': samples * trained_encoder(vit, tokens),
        'head': samples * TRAINED * linear(1, vit.width, num_classes),
    }
