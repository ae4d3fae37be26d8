"""Swin checkpoints: `mvdjax convert` both ways, and what a later stage makes of them, against the published loaders."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from golden_weights import assert_array, assert_close, golden, normalize_clip, quick_jit, to_ours, to_torch, weight

from mvdjax import checkpoints, handover, selfcheck, trees
from mvdjax.convert import families, files, models, rules
from mvdjax.convert.architecture import Given
from mvdjax.errors import UserError
from mvdjax.main import main
from mvdjax.models.bevt import MaskedSwin, SwinClassifier
from mvdjax.tasks.base import build_swin, check_backbone

NOISE = {'rtol': 2e-6, 'atol': 8e-6}  # see tests/models/test_video_swin.py


def swin(config):
    names = {'depths': 'depths', 'num_heads': 'heads', 'window_size': 'window', 'patch_size': 'patch'}
    return build_swin({'width': config['embed_dim'], **{ours: tuple(config[name]) for name, ours in names.items()}})


def masked(backbone, vocabulary=8):
    """Abstract parameters of both streams."""
    video, image, mask = jnp.zeros((1, 4, 32, 32, 3)), jnp.zeros((1, 1, 32, 32, 3)), jnp.zeros((1, 1, 1, 1), bool)
    init = functools.partial(
        MaskedSwin(backbone, vocabulary).init, video=video, video_mask=mask, images=image, image_mask=mask
    )
    return jax.eval_shape(lambda key: init(key, method='two_streams')['params'], jax.random.key(0))


def stored(case):
    """{name: array} of the checkpoint of a case, its names with the prefix that they have there."""
    checkpoint = case['checkpoint']
    head = checkpoint.get('head_shapes', {})
    state = {checkpoint['prefix'] + n: weight(f'ckpt:{n}', s) for n, s in checkpoint['shapes'].items()}
    return state | {n: weight(f'ckpt:{n}', s) for n, s in head.items()}


@pytest.fixture
def quick(monkeypatch):
    """Convert without answers for selfcheck, which take longer than all the rest."""
    monkeypatch.setattr(selfcheck, 'store_once', lambda folder: None)


def save(state, path, container, **others):
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}
    torch.save({container: tensors, **others}, path)
    return str(path)


def converted(case, tmp_path, *options):
    """The checkpoint of a case, through the command line; its workdir."""
    state = stored(case) | {name: np.zeros((16, 16), np.int64) for name in case['checkpoint'].get('also_holds', [])}
    source = save(state, tmp_path / 'source.pth', case['checkpoint']['wrapped_under'])
    size = 'x'.join(map(str, case['size'])) if 'transfer' in options else '1x64x64'
    assert main(['convert', source, str(tmp_path / 'ours'), f'--input={size}']) == 0
    return str(tmp_path / 'ours')


def check_params(tree, name, family):
    """Every parameter of the published loader's result."""
    wanted = golden(name)['params_after']
    found = to_torch(family, tree, golden(name)['shapes'])
    assert found.keys() == wanted.keys()
    norms = [np.linalg.norm(found[n].astype(np.float64)) for n in wanted]
    assert_close(norms, [want['norm'] for want in wanted.values()], name, 'parameters taken over, norms', rtol=1e-6)
    first = np.concatenate([found[n].reshape(-1)[: len(want['head'])] for n, want in wanted.items()])
    stored = np.concatenate([want['head'] for want in wanted.values()])
    assert_close(first, stored, name, 'parameters taken over, first values', rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures('quick')
def test_a_published_image_model_becomes_one_of_both_streams(tmp_path):
    name = 'bevt/inflate_bevt_window4to7'
    case = golden(name)
    path, backbone = converted(case, tmp_path), swin(case['config'])
    assert 'corrected' in check_backbone(checkpoints.read_meta(path), backbone, 'model', path, starts=True)
    before = {n: weight(n, s) for n, s in case['shapes'].items()}
    fresh = ('^(lm_down_st|fpn_s|fpn_t|lm_head)/',)
    loaded = trees.flatten(handover.load_params(path, masked(backbone), 'model', allow_fresh=fresh).params)
    own = trees.flatten(to_ours('bevt', before, {k: v for k, v in masked(backbone).items() if k != 'lm_head'}))
    kept = {n for n, leaf in loaded.items() if isinstance(leaf, jax.ShapeDtypeStruct) and not n.startswith('lm_head')}
    assert {n.split('/')[0] for n in kept} == {'lm_down_st', 'fpn_s', 'fpn_t'}
    loaded |= {n: own[n] for n in kept}
    tree = trees.unflatten({n: leaf for n, leaf in loaded.items() if not n.startswith('lm_head')})
    check_params(tree, name, 'bevt')
    changed = {n for n, entry in case['params_after'].items() if not entry['changed']}
    assert {n.split('.')[0] for n in changed} == {'lm_down_st', 'fpn_s', 'fpn_t'}

    tree['lm_head'] = {'kernel': jnp.zeros((backbone.out_width, 8)), 'bias': jnp.zeros(8)}
    video = normalize_clip(case['seed'], 1, *case['size'])
    _, info = quick_jit(MaskedSwin(backbone, 8).apply)({'params': tree}, video)
    assert_array(np.asarray(info['tokens']).reshape(1, -1, backbone.out_width), name, 'output', **NOISE)


@pytest.mark.usefixtures('quick')
def test_a_published_image_model_becomes_one_of_clips(tmp_path):
    name = 'bevt/inflate_swin3d_same_window'
    case = golden(name)
    backbone = swin(case['config'])
    path = converted(case, tmp_path)
    video = normalize_clip(case['seed'], 1, *case['size'])
    expected = {'backbone': jax.eval_shape(backbone.init, jax.random.key(0), video)['params']}
    tree = handover.load_params(path, expected, 'model').params
    check_params(tree, name, 'video_swin')
    features, _ = quick_jit(backbone.apply)({'params': tree['backbone']}, video)
    assert_array(np.moveaxis(features, -1, 1), name, 'output', **NOISE)


@pytest.mark.usefixtures('quick')
def test_a_published_two_stream_model_becomes_a_classifier(tmp_path):
    name = 'bevt/transfer_window444_to_844'
    case = golden(name)
    path, model = converted(case, tmp_path, 'transfer'), SwinClassifier(swin(case['config']), 5)
    video = normalize_clip(case['seed'], 1, *case['size'])
    expected = jax.eval_shape(model.init, jax.random.key(0), video)['params']
    unused = ('^backbone/(mask_token|patch_embed_2d)', '^(fpn|lm_)')
    loaded = handover.load_params(path, expected, 'model', allow_fresh=('^head/',), allow_unused=unused)
    tree = {'backbone': loaded.params['backbone']}
    check_params(tree, name, 'video_swin')
    features, _ = quick_jit(model.backbone.apply)({'params': tree['backbone']}, video)
    assert_array(np.moveaxis(features, -1, 1), name, 'output', **NOISE)


def small(family):
    """{name: array} of a small file of a family."""
    if family == 'swin2d':
        case = golden('bevt/inflate_bevt_window4to7')
        names = {n: s for n, s in case['checkpoint']['shapes'].items() if not n.startswith(('fc_norm', 'head'))}
        return {n: weight(n, s) for n, s in names.items()} | {
            n: weight(n, (128,)) for n in ('norm.weight', 'norm.bias')
        }
    case = golden('bevt/transfer_window444_to_844')
    shapes = case['checkpoint']['shapes'] if family == 'bevt' else case['shapes']
    head = ('lm_head', 64) if family == 'bevt' else ('fc_cls', 5)
    shapes = {f'backbone.{n}': s for n, s in shapes.items()}
    shapes |= {f'cls_head.{head[0]}.weight': (head[1], 128), f'cls_head.{head[0]}.bias': (head[1],)}
    return {n: weight(n, s) for n, s in shapes.items()}


@pytest.mark.parametrize('family', ['bevt', 'video_swin', 'swin2d'])
def test_there_and_back_is_exact(family, tmp_path, capsys):
    state = small(family)
    container = families.get(family).container
    source = save(state, tmp_path / 'source.pth', container, meta={'epoch': 3})
    frames = {'bevt': 4, 'video_swin': 8, 'swin2d': 1}[family]
    assert main(['convert', source, str(tmp_path / 'ours'), f'--input={frames}x64x64']) == 0
    out = capsys.readouterr().out
    assert f'is of the family {family} ' in out
    assert 'Swin 16 wide, 2-2-2-2 deep' in out
    assert 'note: no answers' not in out
    stored = checkpoints.find_step_folder(str(tmp_path / 'ours')) / selfcheck.FILE
    assert json.loads(stored.read_text())['clips'].keys() == set(selfcheck.CLIPS)
    if family == 'video_swin':  # of the three, the one whose answers have logits
        assert main(['selfcheck', str(tmp_path / 'ours')]) == 0
        assert 'top class the same' in capsys.readouterr().out
    assert main(['convert', str(tmp_path / 'ours'), str(tmp_path / 'back.pth')]) == 0
    back = torch.load(tmp_path / 'back.pth')[container]
    index = {n: back.pop(n) for n in list(back) if n.endswith('relative_position_index')}
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    window = {'bevt': (4, 4, 4), 'video_swin': (8, 4, 4), 'swin2d': (1, 4, 4)}[family]
    assert len(index) == 8
    for table in index.values():
        np.testing.assert_array_equal(table, index_of(window))


def index_of(window):
    """The row of the bias table for each pair of tokens, written out from the golden README."""
    wd, wh, ww = window
    tokens = [(d, h, w) for d in range(wd) for h in range(wh) for w in range(ww)]
    rows = [
        [
            (d - e + wd - 1) * (2 * wh - 1) * (2 * ww - 1) + (h - g + wh - 1) * (2 * ww - 1) + (w - v + ww - 1)
            for e, g, v in tokens
        ]
        for d, h, w in tokens
    ]
    return np.array(rows)


@pytest.mark.parametrize(('key', 'name'), [('two_stream', 'bevt'), ('finetune_ssv2', 'video_swin')])
def test_the_published_names(key, name):
    """Every tensor of the published Swin-B files has its place here, and a file of ours has the same ones."""
    published = {n: tuple(shape) for n, (shape, _) in golden('bevt/names_swin_b')[key].items()}
    source = files.Source(shapes=dict(published))
    family = families.recognise(published)
    assert family.name == name
    model = models.read(family, source, Given(), average=False)
    assert model.backbone['window'] == ((8, 7, 7) if name == 'bevt' else (16, 7, 7))
    expected, mapping = model.shapes(), models.make_rules(family, model)
    left = rules.check_source(mapping, {}, source.shapes, expected, family.drops)
    ours = {family.written(n) for rule in mapping for block in rule.names() for n in block}
    index = {n for n in published if n.endswith('relative_position_index')}
    assert ours | index == {n for n in published if 'vae_encoder' not in n}
    assert {family.canonical(n) for n in index} <= set(left)
    buffers = models.file_contents(family, model, {})
    assert {n: array.shape for n, array in buffers.items()} == {n: published[n] for n in index}


@pytest.mark.usefixtures('quick')
def test_the_moving_average_of_a_published_file(tmp_path, capsys):
    state = small('video_swin')
    average = {'ema_' + name.replace('.', '_'): array + 1 for name, array in state.items()}
    source = save(state | average, tmp_path / 's.pth', 'state_dict')
    for option, added in (([], 0), (['--ema'], 1)):
        ours = str(tmp_path / f'ours{added}')
        assert main(['convert', source, ours, '--input=4x64x64', *option]) == 0
        assert ('the moving average (ema_' in capsys.readouterr().out) == (not added)
        found = checkpoints.read_params(ours)
        np.testing.assert_array_equal(found['head/bias'], state['cls_head.fc_cls.bias'] + added)
    plain = save(state, tmp_path / 'p.pth', 'state_dict')
    assert main(['convert', plain, str(tmp_path / 'o'), '--input=4x64x64', '--ema']) == 1
    assert 'the file holds no moving average' in capsys.readouterr().err


@pytest.mark.usefixtures('quick')
def test_windows_that_tables_do_not_say(tmp_path, capsys):
    state = small('video_swin')
    for name in list(state):
        if name.endswith('bias_table'):
            state[name] = np.zeros((81, state[name].shape[1]), np.float32)
    source = save(state, tmp_path / 's.pth', 'state_dict')
    options = ['convert', source, str(tmp_path / 'ours'), '--input=4x64x64']
    assert main(options) == 1
    assert 'has 81 rows, which 2 square windows have: give --window=TxHxW' in capsys.readouterr().err
    assert main([*options, '--window=4x4x4']) == 1
    assert '--window=4x4x4 does not fit the 81 rows' in capsys.readouterr().err
    assert main([*options, '--window=5x2x2']) == 0
    table = checkpoints.read_params(str(tmp_path / 'ours'))['backbone/stage1/blocks/attn/relative_position_table']
    assert table.shape == (2, 9, 3, 3, 1)


@pytest.mark.usefixtures('quick')
def test_what_a_family_cannot_hold(tmp_path, capsys):
    source = save(small('bevt'), tmp_path / 's.pth', 'state_dict')
    assert main(['convert', source, str(tmp_path / 'ours'), '--input=4x64x64']) == 0
    options = ['convert', str(tmp_path / 'ours'), str(tmp_path / 'b.pth'), '--family=video_swin']
    assert main(options) == 1
    error = capsys.readouterr().err
    assert 'it has embedding of images' in error
    assert 'it has a head (lm_head), the family has none' in error
    left = '--ignore=^(fpn|lm_)|mask_token|patch_embed_2d'
    assert main([*options, left]) == 0
    tensors = torch.load(tmp_path / 'b.pth')['state_dict']
    assert tensors.keys() - {n for n in tensors if 'index' in n} == {
        n for n in small('video_swin') if not n.startswith('cls_head')
    }
    assert main(['convert', str(tmp_path / 'ours'), str(tmp_path / 'c.pth'), '--family=mvd']) == 1
    assert 'one is a ViT, the other a Swin' in capsys.readouterr().err
    with pytest.raises(UserError, match='--heads, --decoder-heads: the tensors of bevt say them'):
        models.read(families.get('bevt'), files.Source.of(small('bevt')), Given(heads=3), average=False)
