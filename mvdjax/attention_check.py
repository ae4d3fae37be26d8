"""`mvdjax selfcheck --attention`: does the attention that this machine's devices would use give XLA's numbers?

Fused kernels exist where no test of this project runs. Before a machine trains for weeks with one, this compares it,
forward and gradients, with XLA's attention in float32, beside what XLA's own 16-bit attention is off by.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvdjax.console import say
from mvdjax.errors import UserError
from mvdjax.models.attention import attention, choose

KERNELS = ('cudnn', 'pallas')
DTYPE = jnp.bfloat16
TIMES = 2.0  # a kernel may be off by so many times what XLA's 16-bit attention is off by; it sums in another order


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of a model: its name, tokens, heads, channels per head, and whether it has a bias."""

    name: str
    tokens: int
    heads: int
    head_dim: int
    biased: bool = False


CASES = (
    Case('ViT-B, visible tokens of a clip', 160, 12, 64),
    Case('ViT-B, all tokens of a clip', 1568, 12, 64),
    Case('ViT-H, all tokens of a clip', 1568, 16, 80),
    Case('ViT-L, a frame and its class token', 197, 16, 64),
    Case('Swin, 16 windows of 4 heads with their biases', 392, 64, 32, biased=True),
)


def answers(case: Case, implementation: str, dtype: Any) -> dict[str, np.ndarray]:
    """{'output', 'dq', 'dk', 'dv', and 'dbias' where there is one}: float32, of drawn inputs and a drawn cotangent."""
    random = np.random.RandomState(0)
    shape = (2, case.tokens, case.heads, case.head_dim)
    # Rounded to 16 bits for all, so that what is compared is the arithmetic.
    q, k, v, cotangent = (jnp.asarray(random.standard_normal(shape), DTYPE).astype(dtype) for _ in range(4))
    inputs = {'q': q, 'k': k, 'v': v}
    if case.biased:
        sides = (1, case.heads, case.tokens, case.tokens)
        inputs['bias'] = jnp.asarray(random.standard_normal(sides), DTYPE).astype(dtype)

    def loss(inputs: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y = attention(**inputs, implementation=implementation)
        return jnp.sum((y * cotangent).astype(jnp.float32)), y

    with jax.default_matmul_precision('highest'):
        gradients, y = jax.jit(jax.grad(loss, has_aux=True))(inputs)
    found = {'output': y, **{f'd{name}': gradient for name, gradient in gradients.items()}}
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def errors(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, float]:
    """Norm of the difference over the norm, of each array."""
    return {name: float(np.linalg.norm(got[name] - x) / np.linalg.norm(x)) for name, x in want.items()}


def available(case: Case, device: jax.Device) -> list[str]:
    """The kernels that this device has for a case."""
    found = []
    for kernel in KERNELS:
        try:
            lengths = (case.tokens, case.tokens)
            choose(kernel, dtype=DTYPE, head_dim=case.head_dim, lengths=lengths, biased=case.biased, device=device)
        except UserError:
            continue
        found.append(kernel)
    return found


def check() -> None:
    """Prints what was compared and how far apart it is.

    Raises:
      UserError: a kernel is further off than XLA's arithmetic of the same width explains.
    """
    device = jax.devices()[0]
    say(f'attention on {device.device_kind}, {jnp.dtype(DTYPE)}: norm of the difference from float32 over the norm')
    compared, wrong = set(), []
    for case in CASES:
        want = answers(case, 'xla', jnp.float32)
        rough = errors(answers(case, 'xla', DTYPE), want)
        say(f'  {case.name}: {case.tokens} tokens, {case.heads} heads of {case.head_dim}')
        say(f'    {"xla":<7}' + _line(rough))
        for kernel in available(case, device):
            compared.add(kernel)
            found = errors(answers(case, kernel, DTYPE), want)
            far = [name for name, error in found.items() if not error <= TIMES * rough[name]]
            wrong += [f'{kernel} {name} ({case.name})' for name in far]
            say(f'    {kernel:<7}' + _line(found) + (f'  too far: {", ".join(far)}' if far else ''))
    if wrong:
        raise UserError(
            f'fused attention is further off than {TIMES:g} times what 16 bits explain: {", ".join(wrong)}; '
            "train with attention='xla' in the model sections, and report it with the versions of jax and the driver"
        )
    if compared:
        say(f'{" and ".join(sorted(compared))} agrees with XLA, outputs and gradients')
    else:
        say(f'nothing was compared: a {device.platform} has none of {", ".join(KERNELS)}, models use XLA here')


def _line(found: dict[str, float]) -> str:
    return '  '.join(f'{name} {error:.1e}' for name, error in found.items())
