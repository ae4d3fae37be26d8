"""`mvdjax convert` in both directions, on the published lists of tensors, from the command line."""

import re

import numpy as np
import pytest
import safetensors.numpy
import torch
from golden_weights import assert_array, clip, golden, model_arrays, quick_jit, weight
from small_runs import arguments

from mvdjax import checkpoints, evaluate, selfcheck
from mvdjax import config as configs
from mvdjax.convert import families
from mvdjax.errors import UserError
from mvdjax.main import main
from mvdjax.tasks import mvd

# family -> (golden case that lists its tensors, what tensors do not say)
CASES = {
    'mae': ('data/mae_tiny', ['--heads=3', '--decoder-heads=4']),
    'mae encoder': ('mvd/image_teacher_tiny', ['--heads=3', '--input=1x64x64']),
    'videomae': ('data/videomae_tiny', ['--heads=3', '--decoder-heads=2', '--input=16x64x64']),
    'videomae encoder': ('mvd/video_teacher_tiny', ['--heads=3', '--input=16x64x64']),
    'videomae-finetuned': ('mvd/finetune_tiny', ['--heads=3', '--input=16x64x64', '--family=videomae-finetuned']),
    'mvd': ('mvd/student_tiny', ['--heads=3', '--decoder-heads=3', '--input=16x64x64']),
    'mvd-finetuned': ('mvd/finetune_tiny', ['--heads=3', '--input=16x64x64', '--family=mvd-finetuned']),
}


def published(kind):
    """{PyTorch name: array} of a case, with the fixed tables that such files hold."""
    name = CASES[kind][0]
    state = {n: weight(n, s) for n, s in golden(name)['shapes'].items() if 'gamma' not in n}
    if kind == 'mae':
        state |= {n: model_arrays(name)[n] for n in ('pos_embed', 'decoder_pos_embed')}
    return state


def save(state, path):
    torch.save({'model': {name: torch.from_numpy(array) for name, array in state.items()}}, path)
    return str(path)


@pytest.mark.parametrize('kind', CASES)
def test_there_and_back_is_exact(kind, tmp_path, capsys):
    state, options = published(kind), CASES[kind][1]
    source = save(state, tmp_path / 'source.pth')
    assert main(['convert', source, str(tmp_path / 'ours'), *options]) == 0
    out = capsys.readouterr().out
    assert f'is of the family {kind.split()[0]} ' in out
    tables = [name for name in state if 'pos_embed' in name]
    blocks = sum('blocks.' in name for name in state)
    assert f'{len(state) - len(tables)} PyTorch tensors, ' in out
    assert blocks > 30
    for name in tables:
        assert f'{name} ' in out

    for target in ('back.pth', 'back.safetensors'):
        family = [f'--family={kind}'] if 'finetuned' in kind else []
        assert main(['convert', str(tmp_path / 'ours'), str(tmp_path / target), *family]) == 0
    back = {n: t.numpy() for n, t in torch.load(tmp_path / 'back.pth')['model'].items()}
    other = safetensors.numpy.load_file(tmp_path / 'back.safetensors')
    assert back.keys() == other.keys()
    if kind == 'mae encoder':  # its golden case leaves the table out, the published file has it
        assert back.pop('pos_embed').shape == (1, 17, 48)
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
        np.testing.assert_array_equal(other[name], array, err_msg=name)
        assert back[name].flags['C_CONTIGUOUS']


def test_a_converted_student_answers_as_stored(tmp_path, capsys):
    source = save(published('mvd'), tmp_path / 'student.pth')
    main(['convert', source, str(tmp_path / 'ours'), *CASES['mvd'][1]])
    assert selfcheck.run(_args(tmp_path / 'ours')) == 0
    meta = checkpoints.read_meta(str(tmp_path / 'ours'))
    assert meta['family'] == 'mvd'
    assert meta['input_shape'] == [16, 64, 64, 3]
    assert 'CC-BY-NC' in meta['licence']
    assert len(meta['sources'][0]['sha256']) == 64
    assert 'this machine gives the stored answers' in capsys.readouterr().out


def _args(path):
    return type('Args', (), {'checkpoint': str(path), 'store': False, 'attention': False})()


def test_a_classifier_with_a_config_can_be_evaluated(tmp_path, demo_data, capsys):
    state = published('mvd-finetuned')
    source = save(state, tmp_path / 'tuned.pth')
    spec = tmp_path / 'config.py'
    spec.write_text(CONFIG.format(data=demo_data))
    (tmp_path / 'names.txt').write_text('\n'.join('abcdefg'))
    target = str(tmp_path / 'ours')
    options = [*CASES['mvd-finetuned'][1], f'--config={spec}', f'--classes={tmp_path}/names.txt']
    assert main(['convert', source, target, *options]) == 0
    result = evaluate.evaluate(configs.load(str(spec)), target, str(tmp_path), 'test', use_ema=False)
    assert result['scored'] > 0
    capsys.readouterr()
    video = sorted((demo_data / 'videos/test').iterdir())[0]
    assert main(['predict', f'--checkpoint={target}', '--top=1', str(video)]) == 0
    assert capsys.readouterr().out.split()[-1] in 'abcdefg'

    wrong = [option for option in options if 'config' not in option]
    code = main(['convert', source, target, *wrong, '--overwrite', f'--config={spec}', '--config.task.model.depth=2'])
    assert code == 1
    assert 'of another model than' in capsys.readouterr().err


CONFIG = """
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.task_name = 'classify'
    c.task = {{'model': {{'width': 48, 'depth': 3, 'heads': 3}}, 'num_classes': 7}}
    data = {{'files': '{data}/motion_test.txt'}}
    c.data = {{**data, 'recipe': 'finetune', 'options': {{'size': 64}}}}
    views = {{'size': 64, 'clips': 2, 'crops': 1}}
    c.evals = {{'test': {{'data': {{'files': '{data}/seven.txt', 'recipe': 'views', 'options': views}}, 'batch': 8}}}}
    c.optim = {{'peak_rate': 1e-3, 'warmup_epochs': 0.0}}
    c.init, c.mesh = {{}}, {{}}
    c.run = {{'global_batch': 8, 'steps': 1}}
    return c
"""


@pytest.fixture(autouse=True)
def _seven_classes(request, tmp_path):
    """A list without the eighth class: the golden classifier has seven."""
    if 'demo_data' not in request.fixturenames:
        return
    root = request.getfixturevalue('demo_data')
    lines = [line for line in (root / 'motion_test.txt').read_text().splitlines() if int(line.split()[-1]) < 7]
    (root / 'seven.txt').write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize(
    ('change', 'options', 'message'),
    [
        (lambda s: s.pop('norm.bias'), [], 'lacks norm.bias'),
        (lambda s: None, ['--family=mvd-finetuned'], 'head.weight is missing in the file'),
        (lambda s: s.update({'patch_embed.proj.weight': np.zeros(3, np.float32)}), [], r'has the shape \(3,\)'),
        (lambda s: s.pop('blocks.1.attn.q_bias'), [], r'lacks blocks.1.attn.q_bias: it is of another family, or inco'),
        (lambda s: s.update(extra=np.zeros(3, np.float32)), [], r'extra of the file has no place .* --ignore=REGEX'),
        (lambda s: s.update({'norm.weight': np.zeros(3, np.float32)}), [], r'norm.weight is \(3,\), expected \(48,\)'),
        (lambda s: None, ['--heads=5'], '--heads=5 does not divide the width 48'),
        (lambda s: None, ['--input=16x60x64'], 'does not divide into patches'),
        (lambda s: None, ['--family=videomae'], 'encoder.patch_embed.proj.weight is missing'),
        (lambda s: None, ['--family=vmae'], "there is no 'vmae'; there are mae, "),
        (lambda s: s.pop('decoder_img.head.weight'), [], 'decoder_img.head.weight is missing'),
    ],
)
def test_what_does_not_fit_is_refused(change, options, message, tmp_path, capsys):
    state = published('mvd')
    change(state)
    code = main(['convert', save(state, tmp_path / 's.pth'), str(tmp_path / 'ours'), *CASES['mvd'][1], *options])
    err = capsys.readouterr().err
    assert code == 1
    assert re.search(message, err), err
    assert not (tmp_path / 'ours').exists()


def test_named_leftovers_are_left_and_shown(tmp_path, capsys):
    state = {**published('mvd'), 'extra.a': np.zeros(3, np.float32)}
    source = save(state, tmp_path / 's.pth')
    assert main(['convert', source, str(tmp_path / 'ours'), *CASES['mvd'][1], '--ignore=^extra']) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if 'extra.a' in line)
    assert 'left behind' in line


def test_positions_that_are_not_the_fixed_ones_are_refused(tmp_path, capsys):
    state = published('mae')
    state['pos_embed'] = state['pos_embed'] + 0.1
    assert main(['convert', save(state, tmp_path / 's.pth'), str(tmp_path / 'ours'), *CASES['mae'][1]]) == 1
    assert 'away from the fixed sin-cos table' in capsys.readouterr().err


def test_unknown_heads_and_ambiguous_families_ask(tmp_path, capsys):
    source = save(published('mvd-finetuned'), tmp_path / 's.pth')
    assert main(['convert', source, str(tmp_path / 'ours')]) == 1
    assert 'say --family=videomae-finetuned or --family=mvd-finetuned' in capsys.readouterr().err
    assert main(['convert', source, str(tmp_path / 'ours'), '--family=mvd-finetuned']) == 1
    assert 'a width of 48 is of no published model' in capsys.readouterr().err


def test_options_of_the_other_direction_and_existing_targets_are_refused(tmp_path, capsys):
    source, ours = save(published('mvd'), tmp_path / 's.pth'), str(tmp_path / 'ours')
    assert main(['convert', source, ours, *CASES['mvd'][1], '--ema']) == 1
    assert '--ema: files of the family mvd hold no moving average' in capsys.readouterr().err
    assert main(['convert', source, ours, *CASES['mvd'][1]]) == 0
    assert main(['convert', source, ours, *CASES['mvd'][1]]) == 1
    assert 'exists: choose another name, or say --overwrite' in capsys.readouterr().err
    assert main(['convert', source, ours, *CASES['mvd'][1], '--overwrite']) == 0
    assert main(['convert', ours, str(tmp_path / 'b.pth'), '--heads=3']) == 1
    assert '--heads: only for converting from PyTorch' in capsys.readouterr().err
    assert main(['convert', ours, str(tmp_path / 'b.pth'), '--family=videomae']) == 1
    err = capsys.readouterr().err
    assert 'it has decoders for image, video; its positions are sincos3d, the family has sincos1d' in err
    assert main(['convert', ours, str(tmp_path / 'folder')]) == 1
    assert 'give a file ending in .pth or .safetensors' in capsys.readouterr().err
    assert main(['convert', ours, str(tmp_path / 'b.pth'), '--ema']) == 1
    assert 'has no ema' in capsys.readouterr().err


def test_learned_positions(tmp_path):
    state = published('mvd-finetuned')
    state['pos_embed'] = np.random.default_rng(0).standard_normal((1, 128, 48)).astype(np.float32)
    options = CASES['mvd-finetuned'][1]
    assert main(['convert', save(state, tmp_path / 's.pth'), str(tmp_path / 'ours'), *options]) == 0
    assert checkpoints.read_meta(str(tmp_path / 'ours'))['backbone']['pos_embed'] == 'learned'
    table = checkpoints.read_params(str(tmp_path / 'ours'))['backbone/position_table']
    np.testing.assert_array_equal(table, state['pos_embed'].reshape(8, 4, 4, 48))
    assert main(['convert', str(tmp_path / 'ours'), str(tmp_path / 'b.pth'), '--family=mvd-finetuned']) == 0
    back = torch.load(tmp_path / 'b.pth')['model']
    np.testing.assert_array_equal(back['pos_embed'], state['pos_embed'])


def test_every_family_recognises_its_own_names():
    for kind in CASES:
        shapes = {name: array.shape for name, array in published(kind).items()}
        fitting = [family.name for family in families.FAMILIES.values() if family.fits(shapes)]
        assert kind.split()[0] in fitting
        assert len(fitting) == (2 if 'finetuned' in kind else 1)


def test_meta_of_a_converted_encoder(tmp_path):
    main(['convert', save(published('mae'), tmp_path / 's.pth'), str(tmp_path / 'ours'), *CASES['mae'][1]])
    meta = checkpoints.read_meta(str(tmp_path / 'ours'))
    assert meta['config']['task_name'] == 'mae'
    assert meta['input_shape'] == [1, 64, 64, 3]
    assert configs.make_task(configs.from_meta(meta)).target == 'mae'


def test_converted_teachers_give_the_golden_targets(tmp_path, capsys):
    """Both teachers of a distillation case, converted from files, loaded by the task that distils from them."""
    name = 'mvd/distill_tiny_tube'
    case, models = golden(name), {}
    for teacher, options in (('image', ['--input=1x64x64']), ('video', ['--input=16x64x64'])):
        state = {n: weight(n, s) for n, s in case['shapes'][f'{teacher}_teacher'].items()}
        target = str(tmp_path / teacher)
        heads = f'--heads={case[f"{teacher}_teacher"]["heads"]}'
        assert main(['convert', save(state, tmp_path / f'{teacher}.pth'), target, heads, *options]) == 0
        size = case[f'{teacher}_teacher']
        models[teacher] = {'width': size['D'], 'depth': size['depth'], 'heads': size['heads']}
    models['image'] |= {'patch': (1, 16, 16), 'pos_embed': 'sincos2d', 'cls_token': True, 'qkv_bias': 'full'}
    models['video'] |= {'pos_embed': 'sincos1d'}
    decoder = {'width': 32, 'depth': 1, 'heads': 2}
    teachers = {n: {'model': m, 'checkpoint': str(tmp_path / n), 'decoder': decoder} for n, m in models.items()}
    task = mvd.Task(student={'variant': 'debug'}, teachers=teachers, mask={'kind': 'tube', 'ratio': 0.5})
    batch = {'video': clip(case['seed'], case['batch'], case['frames'], case['img'])}
    targets = quick_jit(task.targets)(task.frozen(), batch)
    for teacher in models:
        assert_array(targets[teacher], name, f'teacher_{teacher}')
    assert 'loaded' in capsys.readouterr().out


def test_sixteen_bit_files_with_tables(tmp_path):
    state = published('mae')
    half = {name: torch.from_numpy(array).half() for name, array in state.items()}
    torch.save({'model': half}, tmp_path / 's.pth')
    assert main(['convert', str(tmp_path / 's.pth'), str(tmp_path / 'ours'), *CASES['mae'][1]]) == 0
    assert main(['convert', str(tmp_path / 'ours'), str(tmp_path / 'b.pth')]) == 0
    back = torch.load(tmp_path / 'b.pth')['model']
    for name, array in half.items():
        if 'pos_embed' in name:
            np.testing.assert_array_equal(back[name], state[name])  # recomputed in full
        else:
            np.testing.assert_array_equal(back[name], array.float())


def test_an_encoder_alone_can_be_written(tmp_path):
    source = save(published('mvd'), tmp_path / 's.pth')
    main(['convert', source, str(tmp_path / 'ours'), *CASES['mvd'][1]])
    target = str(tmp_path / 'encoder.pth')
    assert main(['convert', str(tmp_path / 'ours'), target, '--ignore=^decoders_', '--family=mvd']) == 0
    encoder = torch.load(target)['model']
    assert encoder.keys() == {n for n in published('mvd') if n.startswith(('patch_embed', 'blocks', 'norm'))}
    with pytest.raises(UserError, match='if it is an MVD student, say --family=mvd'):
        families.recognise(dict.fromkeys(encoder, ()))


def test_a_config_of_another_stage_is_refused(tmp_path, capsys):
    spec = tmp_path / 'config.py'
    spec.write_text(CONFIG.format(data=tmp_path))
    source, ours = save(published('mvd'), tmp_path / 's.pth'), tmp_path / 'ours'
    assert main(['convert', source, str(ours), *CASES['mvd'][1], f'--config={spec}']) == 1
    assert "num_classes None (config: 7), decoders ['image', 'video'] (config: [])" in capsys.readouterr().err
    assert main(['convert', source, str(ours), *CASES['mvd'][1], '--config.task.num_classes=3']) == 1
    assert 'changes a config: give it, --config=FILE' in capsys.readouterr().err
    assert main(['convert', source, str(tmp_path / 'b.pth'), *CASES['mvd'][1]]) == 1
    assert 'are both PyTorch files' in capsys.readouterr().err
    assert not ours.exists()


def test_converted_weights_are_no_run_to_go_on_with(tmp_path, demo_data, capsys):
    source, ours = save(published('mvd'), tmp_path / 's.pth'), str(tmp_path / 'ours')
    main(['convert', source, ours, *CASES['mvd'][1]])
    spec, overrides = arguments('finetune', demo_data)
    assert main(['train', f'--config={spec}', f'--workdir={ours}', *overrides]) == 1
    assert 'holds converted weights, not a run: give their workdir as init.checkpoint' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('option', 'message'),
    [('--heads=0', "'0' is not a whole number above 0"), ('--ignore=(', 'is not a regular expression')]
    + [(f'--input={size}', 'is not FRAMESxHEIGHTxWIDTH') for size in ('224', '0x32x32', '16x-3x4')],
)
def test_bad_options(option, message, capsys):
    with pytest.raises(SystemExit):
        main(['convert', 'a.pth', 'b', option])
    assert message in capsys.readouterr().err
