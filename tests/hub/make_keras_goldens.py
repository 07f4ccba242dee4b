"""What Keras' own networks answer, weights drawn as `keras_layers` says.

    pip install keras h5py; KERAS_BACKEND=jax python tests/hub/make_keras_goldens.py

Writes keras_goldens.npz: the layers with their shapes, and the logits.
"""

import json
import pathlib

import keras
import numpy as np
from keras_layers import drawn, pixels

NETWORKS = {
    "VGG16": ({}, "caffe"),
    "ResNet50": ({}, "caffe"),
    "EfficientNetB0": ({}, "inside"),
}


def main() -> None:
    """Build, fill, ask."""
    found, layers = {}, {}
    for name, (more, prepared) in NETWORKS.items():
        # The dense layers of VGG's own top hold 120 million weights; the mean needs none.
        top = {"include_top": False, "pooling": "avg"} if name == "VGG16" else {"classes": 5}
        model = getattr(keras.applications, name)(
            weights=None, input_shape=(64, 64, 3), classifier_activation=None, **top, **more
        )
        layers[name] = {}
        for layer in model.layers:
            if layer.name.startswith("normalization"):
                layer.set_weights([np.array([0.485, 0.456, 0.406], np.float32),
                                   np.array([0.229, 0.224, 0.225], np.float32) ** 2,
                                   np.zeros((), np.int32)])  # fmt: skip
                layer.finalize_state()  # without which Keras goes on with 0 and 1
                layers[name][layer.name] = [[3], [3], []]
            elif layer.weights:
                shapes = [list(weight.shape) for weight in layer.weights]
                layer.set_weights(drawn(layer.name, shapes))
                layers[name][layer.name] = shapes
        x = pixels()
        if prepared == "caffe":
            x = keras.applications.imagenet_utils.preprocess_input(x, mode="caffe")
        found[name] = np.asarray(model(x, training=False))
    path = pathlib.Path(__file__).with_name("keras_goldens.npz")
    np.savez_compressed(path, layers=json.dumps(layers), **found)
    print({name: value.shape for name, value in found.items()}, path.stat().st_size)


if __name__ == "__main__":
    main()
