"""Options of every recipe at the smallest size, and ways to look at the samples that they make."""

import numpy as np

MASK = {'kind': 'tube', 'ratio': 0.75}
PRETRAIN = {'size': 48, 'length': 8, 'stride': 2, 'patch': (2, 8, 8), 'mask': MASK}
IMAGES = {'size': 48, 'patch': (1, 8, 8), 'mask': {'kind': 'random', 'ratio': 0.75}}
FINETUNE = {'size': 48, 'length': 8, 'stride': 2}
BEVT = {'size': 32, 'patch': (2, 8, 8), 'masked': 8, 'smallest_block': 2, 'short_sides': (36, 44), 'token_size': 16}
BEVT_IMAGE = {**BEVT, 'patch': (1, 8, 8)}
VIEWS = {'size': 48, 'length': 8, 'stride': 2, 'clips': 3, 'crops': 3}


def shapes(sample):
    return {name: (np.shape(x), np.asarray(x).dtype.name) for name, x in sample.items()}


def draw(recipe, record, seed=0):
    return recipe(record, np.random.default_rng(seed))
