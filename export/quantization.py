"""Where 8 bits lose too much: a repair, and a look at each layer."""

import dataclasses
import os
import re
import warnings

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from keras_resnet.files import to_png, write_file
from keras_resnet.progress import progress

from . import folding, runtimes, tflite

# What a manifest says of a network after `repair`.
REPAIR = "channels equalised, weights rounded by their joint loss"
_DEBUG_IMAGES = 16

# A positive factor of a channel passes through these unchanged.
_HOMOGENEOUS = (
    layers.Add,
    layers.AveragePooling2D,
    layers.Dropout,
    layers.GlobalAveragePooling2D,
    layers.MaxPooling2D,
)
# These end with another factor than they begin with.
_WEIGHTED = (layers.Conv2D, layers.Dense)


def repair(classifier, calibration, batch_size=16):
    """Returns a classifier for int8 to be made of, which loses less there.

    First `equalise`, then `round_weights`. Neither needs labels or training.

    Args:
        classifier: a `keras_resnet.classifiers.Classifier`, left unchanged.
        calibration: uint8 (n, height, width, channels), to measure activations on.
        batch_size: images at a time.

    Returns:
        A `Classifier` whose model is folded. Only quantised it is to be used.
    """
    model = equalise(classifier.model, calibration, batch_size)
    return dataclasses.replace(
        classifier, model=round_weights(model, calibration, batch_size)
    )


def equalise(model, images, batch_size=16):
    """Returns a network that computes the same, with ranges that suit int8.

    All channels of a tensor share one scale in int8: one with large values takes
    the levels of the others. But a channel may be divided by any positive number
    that the layers which read it make good, since rectifiers, sums and pooling
    pass it on: cross-layer equalisation (Nagel et al., arXiv:1906.04721), here
    of whole stages of residual blocks too. As weights have a scale for each channel
    that they write, ranges of activations are set against those of the weights
    that read them, as in SmoothQuant (Xiao et al., arXiv:2211.10438).

    Channels that pass through anything else (batch normalisation before a
    convolution, squeeze and excitation, shortcut A) stay as they are.

    Args:
        model: a functional `keras.Model`, left unchanged.
        images: what it takes, (n, height, width, channels).
        batch_size: images at a time.

    Returns:
        A folded `keras.Model`.
    """
    model = folding.fold(model)
    groups = _groups(model)
    tensors = [tensor for group in groups for tensor in group.tensors]
    seen = iter(_peaks(model, tensors, images, batch_size))
    weights = {
        layer: layer.get_weights()
        for group in groups
        for layer in (*group.writers, *group.readers)
    }
    for group in groups:
        peaks = [next(seen) for _ in group.tensors]
        active = np.max([peak / max(peak.max(), 1e-30) for peak in peaks], axis=0)
        read = np.max(
            [_read(weights[r][0], len(active)) for r in group.readers], axis=0
        )
        alive = (active > 0) & (read > 0)
        factor = np.ones(len(active))
        factor[alive] = np.sqrt(active[alive] / read[alive])
        for writer in group.writers:
            weights[writer] = [each / factor for each in weights[writer]]
        for reader in group.readers:
            kernel = weights[reader][0]
            weights[reader][0] = kernel * _spread(factor, kernel.shape)
    for layer, values in weights.items():
        layer.set_weights(values)
    return model


def round_weights(model, images, batch_size=16):
    """Returns a network with weights of int8's levels, rounded with regard to each other.

    What a weight loses to rounding is made good by those not yet rounded, as far as
    what they read goes together: GPTQ (Frantar et al., arXiv:2210.17323, algorithm
    1), by the covariance of what a layer reads. The shift of the mean that remains is
    taken back by the bias (Nagel et al., arXiv:1906.04721, section 4.2).

    Args:
        model: as for `equalise`.
        images: as for `equalise`.
        batch_size: images at a time.

    Returns:
        A folded `keras.Model`, whose kernels a converter to int8 leaves as they are.
    """
    model = folding.fold(model)
    weighted = [
        layer for layer in model.layers if type(layer) in _WEIGHTED and layer.use_bias
    ]
    seen = _input_moments(model, weighted, images, batch_size)
    with progress("rounding weights", len(weighted)) as advance:
        for layer, (products, means) in zip(weighted, seen, strict=True):
            kernel, bias = layer.get_weights()
            parts = kernel.reshape(-1, kernel.shape[-1])
            parts = np.split(parts, len(means), axis=1)
            covariances = products - means[:, :, None] * means[:, None, :]
            rounded = [_round(*each) for each in zip(parts, covariances, strict=True)]
            shifts = [
                mean @ (after - before)
                for mean, after, before in zip(means, rounded, parts, strict=True)
            ]
            kernel = np.concatenate(rounded, axis=1).reshape(kernel.shape)
            layer.set_weights([kernel, bias - np.concatenate(shifts)])
            advance()
    return model


# Share of the mean variance that each gets more of, as few images tell little.
_DAMPING = 0.01
_BLOCK = 128  # Weights whose losses are handed on together, which is faster.


def _round(weights, covariance):
    """Rounds weights to multiples of a 127th of the largest of each output.

    Args:
        weights: (read, written).
        covariance: of what is read, (read, read).

    Returns:
        float64, of the shape of `weights`.
    """
    count, peak = len(weights), np.abs(weights).max(axis=0)
    level = np.maximum(np.float64(peak), 1e-30) / 127
    covariance = np.float64(covariance)
    covariance[np.diag_indices(count)] += (
        _DAMPING * np.trace(covariance) / count + 1e-12
    )
    # First what varies most: many are left to make good what it loses.
    order = np.argsort(-np.diag(covariance), kind="stable")
    left = np.float64(weights)[order]
    # The largest stay: the converter takes the level from them.
    stays = np.abs(weights)[order] == peak
    upper = np.linalg.cholesky(np.linalg.inv(covariance[np.ix_(order, order)])).T
    rounded = np.empty_like(left)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        losses = np.empty((stop - start, left.shape[1]))
        for i in range(start, stop):
            levels = np.clip(np.round(left[i] / level), -127, 127)
            levels[stays[i]] = 127 * np.sign(weights[order[i], stays[i]])
            rounded[i] = levels * level
            loss = (left[i] - rounded[i]) / upper[i, i]
            left[i + 1 : stop] -= np.outer(upper[i, i + 1 : stop], loss)
            losses[i - start] = loss
        left[stop:] -= upper[start:stop, stop:].T @ losses
    return rounded[np.argsort(order)]


def _input_moments(model, weighted, images, batch_size):
    """Moments of what an output of a layer reads: of a convolution, a patch.

    Returns:
        For each layer the means of products (groups, read, read) and the means
        (groups, read), in the order of its kernel.
    """
    probe = keras.Model(model.input, [layer.input for layer in weighted])

    @tf.function(autograph=False, reduce_retracing=True)
    def moments(batch):
        inputs = keras.tree.flatten(probe(batch, training=False))
        read = [_patches(*each) for each in zip(weighted, inputs, strict=True)]
        products = [
            tf.einsum("ngi,ngj->gij", each, each)
            / tf.cast(tf.shape(each)[0], each.dtype)
            for each in read
        ]
        return products, [tf.reduce_mean(each, axis=0) for each in read]

    sums = None
    for i in range(0, len(images), batch_size):
        batch = images[i : i + batch_size]
        share = len(batch) / len(images)
        found = [[share * each.numpy() for each in part] for part in moments(batch)]
        sums = found if sums is None else keras.tree.map_structure(np.add, sums, found)
    return zip(*sums, strict=True)


def _patches(layer, inputs):
    """What each output of a layer reads: (outputs, groups, read)."""
    groups, taken = getattr(layer, "groups", 1), inputs.shape[-1]
    if isinstance(layer, layers.Conv2D):
        inputs = tf.image.extract_patches(
            inputs,
            (1, *layer.kernel_size, 1),
            (1, *layer.strides, 1),
            (1, *layer.dilation_rate, 1),
            layer.padding.upper(),
        )
    places = inputs.shape[-1] // taken
    inputs = tf.reshape(inputs, (-1, places, groups, taken // groups))
    inputs = tf.transpose(inputs, (0, 2, 1, 3))
    return tf.reshape(inputs, (-1, groups, places * taken // groups))


class _Group:
    """Tensors whose channels can only be scaled together, and who scales them."""

    def __init__(self, free):
        self.tensors, self.writers, self.readers, self.free = [], [], [], free

    def add(self, other):
        self.tensors += other.tensors
        self.writers += other.writers
        self.readers += other.readers
        self.free &= other.free


def _groups(model):
    """Finds what can be scaled in a network.

    Args:
        model: a functional `keras.Model` without sub-models.

    Returns:
        A list of `_Group`s.
    """
    group_of = {}  # By the id of a tensor.
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            layer, read = node.operation, [group_of[id(t)] for t in node.input_tensors]
            weighted = type(layer) in _WEIGHTED
            if _passes(layer):
                group = read[0]
                for other in read[1:]:
                    if other is not group:
                        group.add(other)
                        for tensor in other.tensors:
                            group_of[id(tensor)] = group
            else:
                group = _Group(free=weighted and _is_rectifier(layer))
                group.writers += [layer] * weighted
                for each in read:
                    each.readers.append(layer)
                    each.free &= weighted
            group.tensors += node.outputs
            group_of.update({id(tensor): group for tensor in node.outputs})
    for tensor in model.outputs:
        group_of[id(tensor)].free = False
    found = {id(group): group for group in group_of.values() if group.free}
    return [group for group in found.values() if group.readers]


def _is_rectifier(layer):
    return layer.activation in (keras.activations.linear, keras.activations.relu)


def _passes(layer):
    """Whether a layer keeps a positive factor of each channel."""
    if isinstance(layer, layers.ZeroPadding2D):
        # Shortcut A pads channels: it reads them in the other data format.
        return layer.data_format == keras.config.image_data_format()
    if isinstance(layer, layers.Activation):
        return _is_rectifier(layer)
    return isinstance(layer, (layers.ReLU, *_HOMOGENEOUS))


def _peaks(model, tensors, images, batch_size):
    """Largest absolute value of each channel of tensors of a network.

    Returns:
        For each tensor an array (channels,).
    """
    peaks = [
        keras.ops.max(keras.ops.abs(t), axis=tuple(range(t.ndim - 1))) for t in tensors
    ]
    probe = keras.Model(model.input, peaks)
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    parts = [keras.tree.flatten(probe(batch, training=False)) for batch in batches]
    return [np.max(each, axis=0) for each in zip(*parts, strict=True)]


def _read(kernel, channels):
    """Largest weight that reads each channel, relative to its output's largest.

    Args:
        kernel: (..., channels of a group, channels out).
        channels: that are read.
    """
    kernel = np.abs(kernel).reshape(-1, *kernel.shape[-2:]).max(axis=0)
    kernel = kernel / np.maximum(kernel.max(axis=0), 1e-30)
    taken = len(kernel)
    return kernel.reshape(taken, channels // taken, -1).max(axis=2).T.ravel()


def _spread(factor, shape):
    """A number for each channel that is read, in the shape of a kernel's last axes."""
    taken, given = shape[-2:]
    groups = len(factor) // taken
    return np.repeat(factor.reshape(groups, taken).T, given // groups, axis=1)


def debug_quantization(static, model, calibration, images):
    """Compares each tensor of an int8 file with the same in float32.

    Errors add up along the network, as they do in use.

    Args:
        static: path of a SavedModel of float32 pixels, as
            `saved_model.write_static` writes.
        model: the `keras.Model` that it was written of, for the layers' names.
        calibration: uint8 (n, height, width, channels), to calibrate int8 with.
        images: of the same form, to compare on; a few are enough.

    Returns:
        A list of dicts, one for each layer in the order of the network: `layer`;
        `scale` of its output, the value of one level; `error_in_levels`, root mean
        square of the difference; `sqnr_db`, ratio of the power of the output to that
        of the difference, in decibels (6 is one bit); `cosine` of the two outputs.
    """
    exact, int8 = (
        tflite.convert(static, dataclasses.replace(row, pixels="float32"), calibration)
        for row in (tflite.FORMATS["float32"], tflite.FORMATS["float_io"])
    )
    sums, scales = {}, {}
    for (expected, _), (found, its_scales) in zip(
        _outputs(exact, images), _outputs(int8, images), strict=True
    ):
        scales |= its_scales
        for name in found.keys() & expected.keys():
            x, y = np.float64(expected[name]), np.float64(found[name])
            new = [
                (x * x).sum(),
                (y * y).sum(),
                (x * y).sum(),
                ((x - y) ** 2).sum(),
                x.size,
            ]
            sums[name] = sums.get(name, 0) + np.array(new)
    rows = []
    places = {layer.name: place for place, layer in enumerate(model.layers)}
    for name, scale in scales.items():
        made_by = [re.sub(r"_\d+$", "", part) for part in re.split("[/;]", name)]
        made_by = [part for part in made_by if part in places]
        if name not in sums or not scale or not made_by:
            continue
        power, other, product, error, size = sums[name]
        rows.append(
            {
                "layer": max(made_by, key=places.get),
                "scale": float(scale),
                "error_in_levels": float(np.sqrt(error / size) / scale),
                "sqnr_db": float(10 * np.log10(max(power, 1e-30) / max(error, 1e-30))),
                "cosine": float(product / max(np.sqrt(power * other), 1e-30)),
            }
        )
    return rows


def _outputs(content, images):
    """Runs a `.tflite` file and keeps what each operation gives.

    Yields:
        For each image, dicts from a tensor's name to its values as real numbers,
        and to its scale, 0 where it is not quantised; in the order of the graph.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That all this needs memory.
        interpreter = Interpreter(
            model_content=content, experimental_preserve_all_tensors=True
        )
    interpreter.allocate_tensors()
    runner_input = interpreter.get_input_details()[0]["index"]
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    made = [
        details[int(index)]
        for operation in interpreter._get_ops_details()
        if operation["op_name"] != "DELEGATE"
        for index in operation["outputs"]
    ]
    for image in images:
        interpreter.set_tensor(runner_input, np.float32(image[None]))
        interpreter.invoke()
        values, scales = {}, {}
        for tensor in made:
            name, (scale, _) = tensor["name"], tensor["quantization"]
            value = interpreter.get_tensor(tensor["index"])
            values[name] = runtimes.decode(value, tensor)
            scales[name] = scale
        yield values, scales


def debug(source, images, folder):
    """Prints where int8 departs from float32, and writes it down.

    Args:
        source: an `artifacts.Source`.
        images: uint8 (n, height, width, channels), of which some are used.
        folder: to write `quantization.csv` and `quantization.png` into.
    """
    rows = debug_quantization(
        source.static("float32"),
        source.classifier.model,
        source.calibration,
        images[:_DEBUG_IMAGES],
    )
    print(table(rows), flush=True)
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    text = "".join(",".join(map(str, line)) + "\n" for line in lines)
    write_file(os.path.join(folder, "quantization.csv"), text)
    write_file(os.path.join(folder, "quantization.png"), draw(rows))


def table(rows):
    """The rows of `debug_quantization` as text."""
    width = max(len(row["layer"]) for row in rows)
    lines = [
        f"{'layer':<{width}}{'scale':>10}{'error in levels':>17}{'SQNR':>10}{'cosine':>9}"
    ]
    for row in rows:
        lines.append(
            f"{row['layer']:<{width}}{row['scale']:>10.3g}{row['error_in_levels']:>17.2f}"
            f"{row['sqnr_db']:>7.1f} dB{row['cosine']:>9.4f}"
        )
    return "\n".join(lines)


def draw(rows):
    """Draws the rows of `debug_quantization`: signal to noise of each layer, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5, 0.16 * len(rows) + 1), 4.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(rows)), [row["sqnr_db"] for row in rows])
    axes.set_xticks(
        range(len(rows)), [row["layer"] for row in rows], rotation=90, fontsize=7
    )
    axes.margins(x=0.01)
    axes.set_ylabel("signal to quantisation noise (dB)")
    axes.set_title("int8 beside float32, layer by layer")
    return to_png(figure)
