"""Parameter trees: flat path views, and the two layouts of a stack of blocks."""

from typing import Any

import jax
import numpy as np

Tree = Any  # a nested dict of arrays


def path_name(path: tuple[Any, ...]) -> str:
    """A jax key path as 'a/b/c'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def flatten(tree: Tree) -> dict[str, Any]:
    """A tree as {'a/b/c': leaf}, sorted by path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: dict[str, Any]) -> Tree:
    """The nested dict of {'a/b/c': leaf}; the inverse of `flatten` on nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def count(tree: Tree) -> int:
    """Number of values in all leaves (arrays or abstract shapes)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def unstack_blocks(tree: Tree) -> Tree:
    """Scanned layout -> unrolled: every 'blocks' subtree (leading depth axis) becomes 'block_0', 'block_1', ..."""
    if not isinstance(tree, dict):
        return tree
    result = {name: unstack_blocks(child) for name, child in tree.items() if name != 'blocks'}
    if 'blocks' in tree:
        depth = len(jax.tree.leaves(tree['blocks'])[0])
        for i in range(depth):
            result[f'block_{i}'] = jax.tree.map(lambda a, i=i: a[i], tree['blocks'])
    return result


def stack_blocks(tree: Tree) -> Tree:
    """Unrolled layout -> scanned: the inverse of `unstack_blocks`. Leaves become NumPy arrays where stacked."""
    if not isinstance(tree, dict):
        return tree
    result = {name: stack_blocks(child) for name, child in tree.items() if not name.startswith('block_')}
    depth = sum(name.startswith('block_') for name in tree)
    if depth:
        blocks = [tree[f'block_{i}'] for i in range(depth)]
        result['blocks'] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
    return result
