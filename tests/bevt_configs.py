"""What the tests of BEVT's configs share."""

from pathlib import Path

from mvdjax import config as configs
from mvdjax import optimizers, trees

ROOT = Path(__file__).parent.parent


def names_of(params):
    """Every parameter's name, one per block of a stack."""
    return [
        name for path, leaf in trees.flatten(params).items() for name in optimizers.block_names(path, leaf.shape[0])
    ]


def groups_of(file, params):
    """`optim.groups` of a config, less the keys of blocks that a smaller model lacks."""
    groups = configs.load(f'{ROOT}/configs/{file}.py').optim.groups.to_dict()
    names = names_of(params)
    return {key: factors for key, factors in groups.items() if any(key in name for name in names)}
