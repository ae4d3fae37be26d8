"""Against Hugging Face's models with random weights: the same features, logits and losses, and weights that go back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from golden_weights import FORWARD, LOSS, assert_close, quick_jit
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from mvdjax import checkpoints, losses, trees
from mvdjax import config as configs
from mvdjax.main import main
from mvdjax.models.embed import position_table
from mvdjax.models.masked_vit import split_mask

SIZE = {
    'hidden_size': 48,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'intermediate_size': 96,
    'decoder_hidden_size': 32,
    'decoder_num_hidden_layers': 2,
    'decoder_num_attention_heads': 2,
    'decoder_intermediate_size': 64,
    'initializer_range': 0.2,  # large weights: a mistake shows
    'layer_norm_eps': 1e-6,
    'attn_implementation': 'eager',
}
VIDEO = {**SIZE, 'image_size': 32, 'patch_size': 8, 'num_frames': 4, 'tubelet_size': 2}
NAMES = dict(enumerate(('run', 'jump', 'sit', 'lie', 'fall')))

MODELS = {
    'hf-videomae': lambda: VideoMAEForPreTraining(VideoMAEConfig(**VIDEO, use_mean_pooling=False)),
    'hf-videomae-finetuned': lambda: VideoMAEForVideoClassification(VideoMAEConfig(**VIDEO, id2label=NAMES)),
    'hf-mae': lambda: ViTMAEForPreTraining(
        ViTMAEConfig(**SIZE, image_size=32, patch_size=8, mask_ratio=0.75, norm_pix_loss=True)
    ),
}


def make(kind, folder):
    """A model with every parameter random (Hugging Face starts biases at zero), saved as a folder."""
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        if kind == 'hf-mae':  # transformers 5 leaves the tables of a model made from a config at zero
            for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
                table[0, 1:] = torch.tensor(position_table('sincos2d', (1, 4, 4), table.shape[-1]))
        for name, parameter in model.named_parameters():
            if 'position_embeddings' not in name and 'pos_embed' not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def convert(folder, target, *options):
    assert main(['convert', str(folder), str(target), *options]) == 0
    meta = checkpoints.read_meta(str(target))
    task = configs.make_task(configs.from_meta(meta))
    return task, trees.unflatten(checkpoints.read_params(str(target))), meta


def clip(batch, shape):
    return np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)


def pixels(video):
    """uint8 (b, t, h, w, 3) -> Hugging Face's normalised (b, t, 3, h, w)."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.tensor(((video / 255.0 - mean) / std).transpose(0, 1, 4, 2, 3), dtype=torch.float32)


@pytest.mark.parametrize('epsilon', [1e-6, 1e-12])  # the originals', and Hugging Face's own
def test_videomae_pretraining(tmp_path, monkeypatch, epsilon):
    monkeypatch.setitem(VIDEO, 'layer_norm_eps', epsilon)
    name = 'VideoMAEForPreTraining' + ('' if epsilon == SIZE['layer_norm_eps'] else f', epsilon {epsilon:g}')
    model = make('hf-videomae', tmp_path / 'hub')
    task, params, _ = convert(tmp_path / 'hub', tmp_path / 'ours')
    video = clip(2, (4, 32, 32, 3))
    mask = np.tile(np.arange(16) % 4 != 1, (2, 2))  # the same tube of 24 of 32 tokens
    mask[1] = ~np.roll(~mask[1], 1)
    with torch.no_grad():
        theirs = model(pixels(video), torch.tensor(mask), output_hidden_states=True)
    batch = {'video': video, 'mask': mask}

    def ours(params):
        info = task.model().apply(
            {'params': params}, jnp.asarray(pixels(video).numpy().transpose(0, 1, 3, 4, 2)), mask, 24
        )
        return (
            task.reconstruct(params, batch, {}, False)[0],
            task.loss(params, {}, batch, {}, False)[0],
            info[1]['encoded'],
        )

    task = type(task)(**{**vars(task), 'mask': {'kind': 'tube', 'ratio': 0.75}})
    prediction, loss, encoded = quick_jit(ours)(params)
    assert_close(prediction, theirs.logits, name, 'prediction', **FORWARD)
    hidden = model.videomae(pixels(video), torch.tensor(mask))[0].detach()
    assert_close(encoded, hidden, name, 'hidden states', **FORWARD)
    assert_close(loss, theirs.loss, name, 'loss', **LOSS)


def test_videomae_classifier(tmp_path):
    model = make('hf-videomae-finetuned', tmp_path / 'hub')
    task, params, meta = convert(tmp_path / 'hub', tmp_path / 'ours')
    assert meta['class_names'] == list(NAMES.values())
    video = clip(3, (4, 32, 32, 3))
    with torch.no_grad():
        theirs = model(pixels(video), labels=torch.tensor([0, 3, 2]), output_hidden_states=True)
    normalised = jnp.asarray(pixels(video).numpy().transpose(0, 1, 3, 4, 2))
    logits, _ = quick_jit(task.classifier().apply)({'params': params}, normalised)
    _, info = quick_jit(task.backbone().apply)({'params': params['backbone']}, normalised)
    assert_close(logits, theirs.logits, 'VideoMAEForVideoClassification', 'logits', **FORWARD)
    loss = losses.soft_cross_entropy(logits, jax.nn.one_hot(np.array([0, 3, 2]), 5)).mean()
    assert_close(loss, theirs.loss, 'VideoMAEForVideoClassification', 'loss', **LOSS)
    hidden = theirs.hidden_states[-1]
    assert_close(info['last_block'], hidden, 'VideoMAEForVideoClassification', 'hidden states', **FORWARD)


def test_mae(tmp_path):
    model = make('hf-mae', tmp_path / 'hub')
    task, params, _ = convert(tmp_path / 'hub', tmp_path / 'ours')
    images = clip(2, (1, 32, 32, 3))
    noise = np.random.default_rng(1).permuted(np.tile(np.arange(16) / 16, (2, 1)), axis=1)
    with torch.no_grad():
        theirs = model(pixels(images)[:, 0], torch.tensor(noise), output_hidden_states=True)
    mask = theirs.mask.numpy().astype(bool)
    batch = {'video': images, 'mask': mask}

    def ours(params):
        inputs = jnp.asarray(pixels(images).numpy().transpose(0, 1, 3, 4, 2))
        visible, _ = split_mask(jnp.asarray(mask), 12)
        _, info = task.backbone().apply({'params': params['backbone']}, inputs, visible)
        prediction = task.reconstruct(params, batch, {}, False)[0]
        return prediction, task.loss(params, {}, batch, {}, False)[0], info['last_block']

    prediction, loss, hidden = quick_jit(ours)(params)
    order = np.argsort(np.argsort(noise, axis=1)[:, :4], axis=1)  # theirs keep the shuffled order
    kept = np.take_along_axis(theirs.hidden_states[-1].numpy()[:, 1:], order[..., None], axis=1)
    assert_close(hidden, kept, 'ViTMAEForPreTraining', 'hidden states', **FORWARD)
    wanted = theirs.logits.numpy()[mask].reshape(prediction.shape)
    assert_close(prediction, wanted, 'ViTMAEForPreTraining', 'prediction', **FORWARD)
    assert_close(loss, theirs.loss, 'ViTMAEForPreTraining', 'loss', **LOSS)


@pytest.mark.parametrize('kind', MODELS)
def test_exported_weights_load_strictly_there(kind, tmp_path):
    model = make(kind, tmp_path / 'hub')
    convert(tmp_path / 'hub', tmp_path / 'ours')
    back = tmp_path / 'back'
    assert main(['convert', str(tmp_path / 'ours'), str(back), f'--family={kind}']) == 0
    loaded, info = type(model).from_pretrained(back, output_loading_info=True)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name], value, err_msg=name)
    wanted = json.loads((tmp_path / 'hub/config.json').read_text())
    written = json.loads((back / 'config.json').read_text())
    same = set(SIZE) - {'initializer_range', 'attn_implementation'}
    if 'finetuned' in kind:
        same = {key for key in same if not key.startswith('decoder')} | {'id2label'}
    assert {key: written[key] for key in same} == {key: wanted[key] for key in same}

    # The names of the installed version: a plain state dict, loaded with PyTorch alone.
    fresh = MODELS[kind]()
    version = f'--transformers={transformers.__version__.split(".")[0]}'
    assert main(['convert', str(tmp_path / 'ours'), str(tmp_path / 'back.bin'), f'--family={kind}', version]) == 0
    fresh.load_state_dict(torch.load(tmp_path / 'back.bin'), strict=True)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(fresh.state_dict()[name], value, err_msg=name)


@pytest.mark.parametrize(
    ('change', 'message'),
    [({'hidden_act': 'relu'}, "hidden_act 'relu'"), ({'layer_norm_eps': 1e-3}, 'layer_norm_eps 0.001')],
)
def test_models_that_compute_something_else_are_refused(change, message, tmp_path, capsys):
    make('hf-videomae-finetuned', tmp_path / 'hub')
    config = json.loads((tmp_path / 'hub/config.json').read_text())
    (tmp_path / 'hub/config.json').write_text(json.dumps({**config, **change}))
    assert main(['convert', str(tmp_path / 'hub'), str(tmp_path / 'ours')]) == 1
    assert message in capsys.readouterr().err


def test_pixel_statistics_travel_both_ways(tmp_path):
    make('hf-videomae-finetuned', tmp_path / 'hub')
    statistics = {'image_mean': [0.5, 0.5, 0.5], 'image_std': [0.25, 0.5, 1.0]}
    (tmp_path / 'hub/preprocessor_config.json').write_text(json.dumps(statistics))
    task, _, _ = convert(tmp_path / 'hub', tmp_path / 'ours')
    assert (task.backbone().mean, task.backbone().std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    assert main(['convert', str(tmp_path / 'ours'), str(tmp_path / 'b'), '--family=hf-videomae-finetuned']) == 0
    written = json.loads((tmp_path / 'b/preprocessor_config.json').read_text())
    assert {key: written[key] for key in statistics} == statistics


def test_channels_and_other_grids(tmp_path):
    """Five channels and a wide image, as Hugging Face builds them."""
    torch.manual_seed(0)
    config = VideoMAEConfig(**{**VIDEO, 'image_size': [16, 32], 'num_frames': 6, 'num_channels': 5, 'num_labels': 3})
    model = VideoMAEForVideoClassification(config).eval()
    model.save_pretrained(tmp_path / 'hub')
    task, params, meta = convert(tmp_path / 'hub', tmp_path / 'ours')
    assert meta['input_shape'] == [6, 16, 32, 5]
    video = np.random.default_rng(0).random((2, 6, 16, 32, 5), np.float32)
    with torch.no_grad():
        theirs = model(torch.tensor(video.transpose(0, 1, 4, 2, 3))).logits
    logits, _ = quick_jit(task.classifier().apply)({'params': params}, video)
    assert_close(logits, theirs, 'VideoMAEForVideoClassification, 5 channels', 'logits', **FORWARD)
    assert jax.tree.leaves(params)[0].dtype == np.float32
