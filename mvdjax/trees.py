"""Parameter trees: flat path views."""

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
