"""What was compiled once is not compiled again: a folder of executables for the next start, and a watch on this one."""

import os
import warnings
from typing import Any

import jax

from mvdjax import trees


class RecompileWarning(UserWarning):
    """A step was compiled again although nothing about it should have changed."""


def use(folder: str, workdir: str) -> None:
    """Keeps executables that took a second or more to compile in a folder, and takes them from there.

    The next start of the same run, after a preemption say, then begins to compute at once. To be called before a thing
    is compiled. An entry that is damaged is compiled anew, with a warning. One entry serves all processes of a run, the
    first of which writes it.

    Args:
      folder: `run.compile_cache`: relative to the workdir unless absolute, '' for none.
      workdir: of the run.
    """
    if folder:
        # The path as it is written is part of what tells executables apart.
        path = os.path.abspath(os.path.join(workdir, folder))
        jax.config.update('jax_compilation_cache_dir', path)


class Watched:
    """A jitted function of a loop that should compile once; when it compiles again it says what has changed."""

    def __init__(self, function: Any, names: tuple[str, ...]) -> None:
        """`function` is jitted, and takes positional arguments called `names`."""
        self._function, self._names = function, names
        self._seen: dict[str, str] = {}
        self.compilations = 0

    def lower(self, *args: Any) -> Any:
        """As of the jitted function."""
        return self._function.lower(*args)

    def __call__(self, *args: Any) -> Any:
        """Calls the function.

        Warns:
          RecompileWarning: it had to be compiled again; which arguments are other than before.
        """
        result = self._function(*args)
        compilations = self._function._cache_size()
        if compilations > self.compilations:
            self._compiled(self._signature(args))
        self.compilations = compilations
        return result

    def _signature(self, args: tuple[Any, ...]) -> dict[str, str]:
        # Of arguments that may have been donated, which still know their shapes.
        found = {}
        for name, arg in zip(self._names, args, strict=True):
            for path, leaf in trees.flatten(arg).items():
                place = f' on {leaf.sharding}' if isinstance(leaf, jax.Array) else ' on the host'
                weak = ', weakly typed' if getattr(leaf, 'weak_type', False) else ''
                found[f'{name}/{path}' if path else name] = f'{leaf.dtype}{list(leaf.shape)}{weak}{place}'
        return found

    def _compiled(self, signature: dict[str, str]) -> None:
        before, self._seen = self._seen, signature
        if not self.compilations:
            return
        paths = sorted(before.keys() | signature.keys())
        changed = [
            f'{path} was {before.get(path, "not there")}, is {signature.get(path, "not there")}'
            for path in paths
            if before.get(path) != signature.get(path)
        ]
        shown = '; '.join(changed[:3]) or 'no argument has changed, so it must be a setting of JAX'
        more = f' and {len(changed) - 3} more' if len(changed) > 3 else ''
        warnings.warn(
            f'the step was compiled again, which costs as much as its first call: {shown}{more}',
            RecompileWarning,
            stacklevel=3,
        )
