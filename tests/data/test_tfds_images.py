"""Images prepared by tensorflow-datasets."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from mvdjax.data import media
from mvdjax.data.decode import DecodeError
from mvdjax.data.sources import NO_LABEL, read_list
from mvdjax.errors import UserError


def jpeg(value):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 10, 3), value, np.uint8)).save(file, 'jpeg')
    return file.getvalue()


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A data set of tensorflow-datasets with four images."""
    import tensorflow_datasets as tfds

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(names=['cat', 'dog'])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                yield i, {'image': io.BytesIO(jpeg(60 * i)), 'label': int(i == 3)}

    folder = str(tmp_path_factory.mktemp('tfds'))
    TinyImages(data_dir=folder, file_format='array_record').download_and_prepare()
    return folder


def test_labels_that_were_kept_are_those_of_the_data(prepared, tmp_path):
    """Data prepared anew, of the same length, in the same folder."""
    folder = tmp_path / 'tfds'
    shutil.copytree(prepared, folder)

    def labels():
        return [r.label for r in read_list(f'tfds:tiny_images:train:{folder}', num_classes=2).records]

    expected = labels()
    (kept,) = folder.glob('**/mvdjax_labels_train.npz')
    with np.load(kept) as content:
        made_of = content['made_of']
    np.savez(kept, labels=1 - np.array(expected), made_of=made_of)
    assert labels() == [1 - label for label in expected]  # they are believed for as long as the data stay
    (shard,) = folder.glob('**/*.array_record*')
    os.utime(shard, ns=(1, 1))
    assert labels() == expected
    kept.write_bytes(b'no archive')
    assert labels() == expected
    with np.load(kept) as content:
        assert content['labels'].tolist() == expected


def test_tensorflow_datasets(prepared):
    files = read_list(f'tfds:tiny_images:train:{prepared}')
    assert [r.label for r in files.records] == [NO_LABEL] * 4  # pretraining does not pay for labels
    blobs = [media.fetch(r.path) for r in files.records]
    assert sorted(blob.data for blob in blobs) == sorted(jpeg(60 * i) for i in range(4))
    for _ in range(2):  # the second time from the file that keeps them
        labelled = read_list(f'tfds:tiny_images:train:{prepared}', num_classes=2)
        assert labelled.class_names == ('cat', 'dog')
        assert [r.label for r in labelled.records] == [int(blob.data == jpeg(180)) for blob in blobs]
    with pytest.raises(DecodeError, match='cannot be fetched'):
        media.fetch(files.records[0].path.replace('#0', '#99'))
    with pytest.raises(UserError, match=r"tiny_images: Unknown split 'val'"):
        read_list(f'tfds:tiny_images:val:{prepared}')
    with pytest.raises(UserError, match=r'tensorflow-datasets has no nonesuch in .*: Dataset nonesuch not found\.'):
        read_list(f'tfds:nonesuch:train:{prepared}')
    with pytest.raises(UserError, match=r'imagenet2012 is not prepared in .*; prepare it with tfds\.builder\('):
        read_list(f'tfds:imagenet2012:train:{prepared}')
