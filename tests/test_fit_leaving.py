"""What leaves `fit`: int8 weights, LoRA, SavedModels, each the same model wherever it is opened."""

import json

import numpy as np
import pytest

import flipkit
from flipkit.errors import ConfigurationError


@pytest.fixture
def quantized(tiny):
    model = tiny(text={"vocab": 259}, tokenizer="bytes", seed=1)
    model.build()
    model.quantize("int8")
    return model


@pytest.mark.slow
def test_int8_weights_are_in_the_file(quantized, tmp_path):
    quantized.save(tmp_path / "model.keras")
    again = flipkit.load_model(tmp_path / "model.keras")
    kinds = {variable.path: variable.dtype for variable in again.variables}
    assert kinds["flip/image/block_00/attention/query/kernel"] == "int8"
    assert kinds["flip/text/token_embedding"] == "float32"
    for found, expected in zip(again.variables, quantized.variables, strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=found.path)
    configs = (json.loads(json.dumps(model.get_config())) for model in (again, quantized))
    assert next(configs) == next(configs)


@pytest.mark.slow
def test_what_was_quantized_in_part_is_not_written_down(tiny, tmp_path):
    model = tiny()
    model.build()
    model.quantize("int8", filters="image_projection")
    with pytest.raises(ConfigurationError, match=r"can't be written down.*mode='int8' and filters"):
        model.save(tmp_path / "model.keras")


OPENED = """
import numpy as np
import flipkit

model = flipkit.load_model({path!r})
np.save({found!r}, model.encode_images(np.load({pictures!r})))
"""


@pytest.mark.slow
def test_int8_embeddings_are_the_same_in_a_fresh_process(quantized, tiny, pairs, fresh, tmp_path):
    pictures = pairs()["image"]
    plain = tiny(text={"vocab": 259}, tokenizer="bytes", seed=1).encode_images(pictures)
    expected = quantized.encode_images(pictures)
    assert (plain * expected).sum(axis=1).min() > 0.99
    quantized.save(tmp_path / "model.keras")
    np.save(tmp_path / "pictures.npy", pictures)
    names = {"path": "model.keras", "found": "found.npy", "pictures": "pictures.npy"}
    fresh(OPENED.format(**{name: str(tmp_path / file) for name, file in names.items()}))
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)


@pytest.mark.slow
def test_lora_trains_its_own_matrices_and_is_in_the_file(tiny, pairs, tmp_path):
    model, batch = tiny(mask_ratio=0.0, seed=1), pairs()
    model.build()
    before = model.predict(batch, verbose=0)
    layer = model.image.blocks[0].attention.query
    layer.enable_lora(2)
    kernel = np.array(layer._kernel)  # without the two matrices' product
    np.testing.assert_array_equal(model.predict(batch, verbose=0)["image"], before["image"])
    model.compile("adam")
    model.fit(batch, batch_size=8, verbose=0)
    np.testing.assert_array_equal(layer._kernel, kernel)
    assert np.abs(np.asarray(layer.lora_kernel_b)).max() > 0
    model.save(tmp_path / "model.keras")
    again = flipkit.load_model(tmp_path / "model.keras")
    after = model.predict(batch, verbose=0)
    for name, found in again.predict(batch, verbose=0).items():
        np.testing.assert_array_equal(found, after[name])


EXPORT = """
import numpy as np
import tensorflow as tf
import flipkit

model = flipkit.load_model({path!r})
batch = dict(np.load({batch!r}))
expected = model.predict(batch, verbose=0)
for names in (["image", "text"], ["text"]):
    signature = [{{name: model.signature()[name] for name in names}}]
    folder = {folder!r} + "-".join(names)
    options = {{}} if len(names) == 2 else {{"input_signature": signature}}
    model.export(folder, format="tf_saved_model", verbose=False, **options)
    opened = tf.saved_model.load(folder)
    for rows in (8, 3):
        served = opened.serve({{name: batch[name][:rows] for name in names}})
        assert served.keys() == set(names)
        for name in names:
            np.testing.assert_allclose(served[name], expected[name][:rows], atol=1e-5)
print("the same")
"""


@pytest.mark.slow
def test_a_saved_model_takes_uint8_pictures_and_int32_ids(tiny, pairs, fresh, tmp_path):
    pytest.importorskip("tensorflow", reason="pip install flipkit[tf]")
    model = tiny(seed=1)
    model.build()
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "batch.npz", **pairs())
    names = {"path": "model.keras", "batch": "batch.npz", "folder": "exported-"}
    told = fresh(EXPORT.format(**{name: str(tmp_path / file) for name, file in names.items()}))
    assert told.strip() == "the same"
