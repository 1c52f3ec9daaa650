"""Time to build a network, compared with keras.applications and KerasHub.

python -m benchmarks.build

This package and a peer build the same layers with random weights for 224x224 pixels.
The paper's network with its top is compared with `keras.applications`, whose
convolutions have a bias. Version 1.5 without top is compared with KerasHub's
`ResNetBackbone`, which has the same number of parameters. Most of the time is Keras's own
and equal for both: the construction of layers and variables. The rest is the drawing of
kernels, He normal here and Glorot uniform in the peers. CIFAR networks have no peer, so
their rows have no ratio.

`peer/ours` is the peer's time divided by this package's, as the median over all rounds;
`lowest` and `highest` are the extremes. Above 1, this package is faster.
"""

import functools

from benchmarks.side_by_side import make_row, run, time_turns, write_results


def make_backbone(depth):
    """Returns a function that builds KerasHub's backbone with `depth` layers."""
    from keras_hub.models import ResNetBackbone

    from keras_resnet.spec import find_variant

    variant = find_variant(f"resnet{depth}")
    return lambda: ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(variant.blocks),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=f"{variant.block}_block",
        image_shape=(224, 224, 3),
    )


def make_pairs():
    """Yields (network, constructor, peer or `None`, peer's constructor or `None`)."""
    import keras

    import keras_resnet

    def make_constructor(depth, **options):
        return functools.partial(getattr(keras_resnet, f"ResNet{depth}"), **options)

    for depth in (50, 101, 152):
        name = f"ResNet{depth}"
        build_peer = functools.partial(getattr(keras.applications, name), weights=None)
        yield name, make_constructor(depth), "keras.applications", build_peer
    try:
        for depth in (18, 34, 50, 101, 152):
            ours = make_constructor(depth, include_top=False, stride_on="3x3")
            yield (f"ResNet{depth} without top", ours, "KerasHub", make_backbone(depth))
    except ImportError as error:
        print(f"KerasHub is skipped, because it cannot be imported: {error}")
    for depth in (20, 56, 110, 1202):
        yield f"ResNet{depth}", make_constructor(depth), None, None


def main(num_rounds):
    import keras

    rows = []
    for network, build_ours, peer, build_peer in make_pairs():
        builders = {"ours": build_ours, **({peer: build_peer} if peer else {})}
        # Building ResNet-1202 takes half a minute, so it is built once.
        repeats = 1 if network == "ResNet1202" else num_rounds
        times = time_turns(builders, repeats, keras.backend.clear_session)
        rows.append({"network": network, **make_row(times, peer)})
    write_results("build", rows)


if __name__ == "__main__":
    run(main, rounds=(5, "Number of times that each library builds a network."))
