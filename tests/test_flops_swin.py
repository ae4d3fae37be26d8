"""FLOPs of Swins by formula against the published counts and every matrix product that is traced."""

import jax
import jax.numpy as jnp
import pytest
from traced_flops import at_full_precision, products

from mvdjax import flops_swin
from mvdjax.models.bevt import MaskedSwin, SwinClassifier
from mvdjax.tasks.base import build_swin

SIZE = {'width': 16, 'depths': (2, 1, 4), 'heads': (1, 2, 4)}


def counted(model, video, **options):
    """FLOPs of the products of a training step, but for those that spread bias tables."""
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), video, **options))['params']

    def loss(params, video):
        return jnp.sum(model.apply({'params': params}, video, **options)[0])

    with jax.default_matmul_precision('default'):
        traced = jax.make_jaxpr(jax.grad(loss))(params, video)
    return products(traced.jaxpr, lambda eqn: not at_full_precision(eqn))


@pytest.mark.parametrize('shape', [(2, 8, 32, 32, 3), (1, 5, 40, 28, 3)])  # whole windows; padding everywhere
@pytest.mark.parametrize('corrected', [False, True])
def test_the_formula_counts_every_product_of_a_classifier(shape, corrected):
    model = SwinClassifier(build_swin({**SIZE, 'window': (2, 3, 2), 'corrected': corrected}), 7)
    found = counted(model, jnp.zeros(shape))
    assert sum(flops_swin.classifier(model, shape).values()) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize('image', [False, True])
def test_the_formula_counts_every_product_of_a_masked_model(image):
    model = MaskedSwin(build_swin({**SIZE, 'window': (2, 2, 2)}), 11)
    shape = (2, 1 if image else 6, 32, 32, 3)
    found = counted(model, jnp.zeros(shape), image=image)
    assert sum(flops_swin.stream(model, shape, image).values()) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize(
    ('variant', 'window', 'published'),
    [('B', (8, 7, 7), 282), ('B', (16, 7, 7), 321), ('T', (8, 7, 7), 88), ('S', (8, 7, 7), 166), ('L', (8, 7, 7), 604)],
)
def test_the_published_counts(variant, window, published):
    """BEVT's README and Video Swin's tables: GFLOPs of a view of 32 x 224 x 224."""
    model = SwinClassifier(build_swin({'variant': variant, 'window': window}), 400)
    assert round(flops_swin.per_view(model, (1, 32, 224, 224, 3)) / 1e9) == published
