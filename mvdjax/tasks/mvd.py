"""Masked video distillation (arXiv 2212.04500): predict an image and a video teacher's features at masked tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mvdjax import checkpoints, flops, handover, keywords, losses, trees
from mvdjax.console import say
from mvdjax.data.masks import num_masked
from mvdjax.data.schema import FileList
from mvdjax.errors import UserError
from mvdjax.evaluation.means import Means
from mvdjax.metrics import Metrics, weighted
from mvdjax.models.embed import Grid, token_grid
from mvdjax.models.masked_vit import MaskedViT
from mvdjax.models.vit import ViT
from mvdjax.rng import named_key
from mvdjax.tasks.base import (
    Batch,
    build_decoder,
    build_vit,
    check_backbone,
    check_mask,
    model_input,
    vit_layer_index,
)
from mvdjax.tasks.encoders import VitEncoder

TEACHERS = ('image', 'video')


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen encoder whose last block output, before the final norm, is the target.

    Attributes:
      model: section of `models.vit.ViT`; an image teacher has patch (1, p, p). Its dtype is also that in which the
        weights are held on the devices, see `shapes`.
      checkpoint: a workdir or checkpoint of an `mae` stage, or 'random' for untrained weights (debugging, or the
        random-teacher ablation).
      decoder: section of the student's decoder for this teacher, without `out_dim`.
      weight: factor of this branch in the loss.
      loss: 'smooth_l1' (published), 'l1' or 'l2'.
    """

    model: Mapping[str, Any]
    checkpoint: str
    decoder: Mapping[str, Any]
    weight: float = 1.0
    loss: str = 'smooth_l1'

    def __post_init__(self) -> None:
        """Refuses an unknown loss or a branch that would train nothing."""
        if self.loss not in losses.REGRESSION:
            raise UserError(f'teacher loss must be one of {", ".join(losses.REGRESSION)}, not {self.loss!r}')
        if self.weight <= 0:
            raise UserError(f'teacher weight must be positive, not {self.weight}; leave the teacher out instead')
        if self.checkpoint == 'random' and self.model.get('pos_embed') == 'learned':
            raise UserError('a random teacher has learned nothing: give its pos_embed one of the sin-cos tables')

    def vit(self) -> ViT:
        """The Linen module, without the final norm that the target does not pass."""
        return build_vit({**self.model, 'final_norm': False})

    def params(self, name: str) -> Any:
        """Loads the weights, strictly: only a decoder and the final norm of the source may be left over."""
        vit = self.vit()
        video = jnp.zeros((1, *vit.patch, len(vit.mean)))
        if self.checkpoint == 'random':
            params = jax.jit(vit.init)(named_key(0, f'teacher_{name}'), video)['params']
            return jax.tree.map(lambda x, held: x.astype(held.dtype), params, self.shapes(video.shape))
        meta = checkpoints.read_meta(self.checkpoint)
        check_backbone(meta, vit, f'{name} teacher', self.checkpoint)
        if vit.pos_embed == 'learned':  # on the grid that they were learned on: `check_grid` sees to it that it fits
            video = jnp.zeros((1, *meta['input_shape']))
        expected = self.shapes(video.shape)
        loaded = handover.load_params(
            self.checkpoint, expected, f'{name} teacher', subtree='backbone', allow_unused=('^norm/',)
        )
        say(loaded.table)
        return loaded.params

    def shapes(self, video_shape: tuple[int, ...]) -> Any:
        """The weights for (b, t, h, w, c) input as shapes, in the dtypes that they are held in; reads nothing.

        What the model would cast whenever it is used is held in its compute dtype: half the bytes where that is
        bfloat16, and the same targets to the bit. The norms, which compute in float32, stay in float32.
        """
        vit = self.vit()

        def held(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
            norm = any(part.startswith('norm') for part in trees.path_name(path).split('/'))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if norm else vit.dtype)

        video = jax.ShapeDtypeStruct(video_shape, jnp.float32)
        params = jax.eval_shape(vit.init, jax.random.key(0), video)['params']
        return jax.tree_util.tree_map_with_path(held, params)

    def check_grid(self, name: str, grid: Grid) -> None:
        """Raises UserError if the teacher has learned positions for another token grid than that of its input."""
        vit = self.vit()
        if vit.pos_embed != 'learned':
            return
        learned = token_grid(tuple(checkpoints.read_meta(self.checkpoint)['input_shape']), vit.patch)
        if learned != grid:
            raise UserError(
                f'the {name} teacher has learned positions for a {learned} token grid, its input here makes {grid}: '
                'give it the clips it was trained on (data recipe: length, size, teacher_size)'
            )


@dataclasses.dataclass(frozen=True)
class Task:
    """Distil one or both teachers into a student.

    Attributes:
      student: section of `models.vit.ViT`.
      teachers: 'image' and/or 'video' -> arguments of `Teacher`; leave one out to distil from the other alone.
      mask: {'kind', 'ratio'}, the same section that the data recipe gets.
      norm_feature: normalise the targets per token (off in every published run).
    """

    student: Mapping[str, Any]
    teachers: Mapping[str, Mapping[str, Any]]
    mask: Mapping[str, Any]
    norm_feature: bool = False

    def __post_init__(self) -> None:
        """Refuses unknown teachers, or none."""
        if not self.teachers or set(self.teachers) - set(TEACHERS):
            raise UserError(f"task.teachers takes 'image' and 'video', at least one; it has {sorted(self.teachers)}")
        self._teachers()

    @property
    def rng_names(self) -> tuple[str, ...]:
        """Drop path only: the masks are data."""
        return ('drop_path',)

    def _teachers(self) -> dict[str, Teacher]:
        return {
            name: keywords.build(Teacher, self.teachers[name], f'config.task.teachers.{name}')
            for name in TEACHERS
            if name in self.teachers
        }

    def model(self) -> MaskedViT:
        """The student with a decoder per teacher."""
        backbone = build_vit(self.student)
        decoders = {
            name: build_decoder(
                teacher.decoder, out_dim=teacher.vit().width, drop_path=backbone.drop_path, dtype=backbone.dtype
            )
            for name, teacher in self._teachers().items()
        }
        return MaskedViT(backbone, decoders)

    def num_masked(self, video_shape: tuple[int, ...]) -> int:
        """Masked tokens per sample for videos of this (..., t, h, w, c) shape."""
        return num_masked(grid=token_grid(video_shape, build_vit(self.student).patch), **self.mask)

    def check(self, batch: Batch) -> None:
        """Masks as configured, and the teachers' token grids equal to the student's."""
        patch = build_vit(self.student).patch
        check_mask(batch, patch, self.num_masked(batch['video'].shape))
        grid = token_grid(batch['video'].shape, patch)
        for name, teacher in self._teachers().items():
            shape = list(self._teacher_video(name, batch).shape)
            if name == 'image':
                shape[1] = 1
            theirs = token_grid(tuple(shape), teacher.vit().patch)
            if theirs[1:] != grid[1:] or (name == 'video' and theirs != grid):
                raise UserError(
                    f'the {name} teacher makes a {theirs} token grid of its input, the student {grid}: '
                    'change the patch or the input size (data recipe: teacher_size) until height and width agree'
                )
            teacher.check_grid(name, theirs)

    def _teacher_video(self, name: str, batch: Batch) -> Any:
        """The clip a teacher sees: the second resize of the same crop where its input is another size."""
        return batch['teacher_video'] if name == 'image' and 'teacher_video' in batch else batch['video']

    def init(self, rng: jax.Array, batch: Batch) -> Any:
        """Fresh student parameters."""
        video = model_input(batch['video'], self.backbone())
        return self.model().init(rng, video, batch['mask'], self.num_masked(video.shape))['params']

    def check_files(self, files: FileList) -> None:
        """Any list will do: labels are not used."""

    def backbone(self) -> ViT:
        """The encoder."""
        return build_vit(self.student)

    def feature_encoder(self) -> VitEncoder:
        """The student."""
        return VitEncoder(self.backbone())

    def sources(self) -> list[str]:
        """The teachers."""
        return [t.checkpoint for t in self._teachers().values() if t.checkpoint != 'random']

    def frozen(self) -> dict[str, Any]:
        """The teachers' parameters."""
        return {name: teacher.params(name) for name, teacher in self._teachers().items()}

    def abstract_frozen(self, batch: Batch) -> dict[str, Any]:
        """The shapes of what `frozen` reads."""
        return {name: teacher.shapes(self._seen(name, batch)) for name, teacher in self._teachers().items()}

    def _seen(self, name: str, batch: Batch) -> tuple[int, ...]:
        """Shape of what a teacher is given: for the image teacher one frame per tubelet, as clips of one frame."""
        b, t, *rest = self._teacher_video(name, batch).shape
        frames = len(range(0, t, self.backbone().patch[0]))
        return (b * frames, 1, *rest) if name == 'image' else (b, t, *rest)

    def targets(self, frozen: Any, batch: Batch) -> dict[str, jax.Array]:
        """{teacher: (b, tokens, width) float32 features of every token}, from the whole unmasked clip."""
        tubelet = build_vit(self.student).patch[0]
        features = {}
        for name, teacher in self._teachers().items():
            vit = teacher.vit()
            video = model_input(self._teacher_video(name, batch), vit)
            b = video.shape[0]
            if name == 'image':  # one frame per tubelet: frames 0, 2, 4, ...
                video = video[:, ::tubelet]
                video = video.reshape(-1, 1, *video.shape[2:])  # (b * t, 1, h, w, c)
            _, info = vit.apply({'params': frozen[name]}, video)
            tokens = info['last_block'].astype(jnp.float32)
            tokens = tokens.reshape(b, -1, tokens.shape[-1])  # (b, t * h * w, width)
            features[name] = losses.normalize_features(tokens) if self.norm_feature else tokens
        return features

    def _sample_losses(
        self, params: Any, frozen: Any, batch: Batch, rngs: Mapping[str, jax.Array], train: bool
    ) -> dict[str, jax.Array]:
        predictions, info = self.model().apply(
            {'params': params},
            model_input(batch['video'], self.backbone()),
            batch['mask'],
            self.num_masked(batch['video'].shape),
            train,
            rngs=rngs,
        )
        values: dict[str, jax.Array] = {}
        for name, target in self.targets(frozen, batch).items():
            error = losses.REGRESSION[self._teachers()[name].loss]
            target = jnp.take_along_axis(target, info['masked'][..., None], axis=1)
            values[f'loss_{name}'] = losses.per_sample(error(predictions[name], target))
        total = sum(t.weight * values[f'loss_{name}'] for name, t in self._teachers().items())
        return {'loss': jnp.asarray(total), **values}

    def loss(
        self, params: Any, frozen: Any, batch: Batch, rngs: Mapping[str, jax.Array], train: bool
    ) -> tuple[jax.Array, Metrics]:
        """Weighted sum of the branches' mean losses over masked tokens and channels."""
        values = self._sample_losses(params, frozen, batch, rngs, train)
        return jnp.mean(values['loss']), {name: weighted(v, None) for name, v in values.items()}

    def predict(self, params: Any, frozen: Any, batch: Batch) -> dict[str, jax.Array]:
        """{'loss', 'loss_<teacher>': (b,)} of each sample."""
        return self._sample_losses(params, frozen, batch, {}, train=False)

    def flops(self, batch: Batch) -> dict[str, float]:
        """{'encoder', 'decoders', '<name>_teacher'}: model FLOPs of a training step."""
        shape = tuple(batch['video'].shape)
        parts = flops.masked_vit(self.model(), shape, self.num_masked(shape))
        for name, teacher in self._teachers().items():
            parts[f'{name}_teacher'] = flops.teacher(teacher.vit(), self._seen(name, batch))
        return parts

    def evaluators(self) -> dict[str, Means]:
        """The mean losses."""
        return {'distillation': Means()}

    def layer_index(self, path: str, depth: int) -> Any:
        """See `base.vit_layer_index`."""
        return vit_layer_index(path, depth)
