"""Time to build a network, beside keras.applications and KerasHub.

python -m benchmarks.build

Both sides build the same layers with random weights at 224x224: the paper's
network with its top beside `keras.applications` (whose convolutions have a bias
each), and version 1.5 without a top beside KerasHub's `ResNetBackbone`, whose
parameters are as many. The peers draw their kernels from Glorot's uniform
distribution, ours from He's normal one, as the paper does, which takes longer.
CIFAR nets have no peer and stand for the record.
`peer/ours` is the median over the rounds, with the lowest and the highest beside
it; above 1 ours is faster.
"""

import functools

from benchmarks.side_by_side import compare, run, take_turns, write_results


def backbone(depth):
    """Returns a function that builds KerasHub's backbone of that depth."""
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


def pairs():
    """Yields (network, its constructor, peer, its constructor), none without."""
    import keras

    import keras_resnet

    def ours(depth, **options):
        return functools.partial(getattr(keras_resnet, f"ResNet{depth}"), **options)

    for depth in (50, 101, 152):
        name = f"ResNet{depth}"
        theirs = functools.partial(getattr(keras.applications, name), weights=None)
        yield name, ours(depth), "keras.applications", theirs
    try:
        for depth in (18, 34, 50, 101, 152):
            v15 = ours(depth, include_top=False, stride_on="3x3")
            yield f"ResNet{depth} without top", v15, "KerasHub", backbone(depth)
    except ImportError as error:
        print(f"No rows for KerasHub, which cannot be imported: {error}")
    for depth in (20, 56, 110, 1202):
        yield f"ResNet{depth}", ours(depth), None, None


def main(rounds):
    """Measures every pair and writes `results/build.csv`."""
    import keras

    rows = []
    for network, ours, peer, theirs in pairs():
        sides = {"ours": ours, **({peer: theirs} if peer else {})}
        # Half a minute for each ResNet-1202.
        count = 1 if network == "ResNet1202" else rounds
        times = take_turns(sides, count, keras.backend.clear_session)
        rows.append({"network": network, **compare(times, peer)})
    write_results("build", rows)


if __name__ == "__main__":
    run(main, rounds=(5, "Networks built by each side of a pair."))
