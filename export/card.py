"""MODEL_CARD.md: what a network is, and how to run it."""

_CARD = """# {name}

{kind}, {classes} classes, {made}.

| | |
| --- | --- |
| input | `image`, uint8 ({height}, {width}, {channels}), raw pixels from 0 to 255; normalisation is inside |
| images of other sizes | {interpolation} with antialiasing to cover {cover_height}x{cover_width} pixels, then the central {height}x{width} |
| output | `probabilities`, float32 ({classes}); the classes are in `labels.txt`, in order |
| accuracy | Keras model: {right} of {images} held-out images right, {accuracy:.2%} |
{history}

| artifact | size | right | same class as Keras | accuracy lost, 95 % interval | latency |
| --- | --- | --- | --- | --- | --- |
{rows}

Accuracy and agreement are over the same {images} held-out images. The latency is
the {latency}, on {machine}.

## Limits

It knows only the classes above and names one of them for any image. It has been
checked on held-out images of {checked}, and on no others.

## Use

```python
from ai_edge_litert.interpreter import Interpreter
classify = Interpreter("float32.tflite").get_signature_runner("serving_default")
probabilities = classify(image=pixels[None])["probabilities"][0]  # pixels: uint8
```

```python
import tensorflow as tf
served = tf.saved_model.load("saved_model/1").signatures["image_bytes"]
answer = served(image_bytes=tf.constant([open("image.png", "rb").read()]))
print(answer["classes"].numpy(), answer["scores"].numpy())
```
"""


_RECIPE = """\
| recipe | {epochs} epochs of SGD, batch {batch_size}, learning rate {learning_rate}, weight decay {weight_decay} |
| random seed | {seed} |"""


def model_card(manifest, classes):
    """Returns the card of a bundle.

    Args:
        manifest: the bundle's.
        classes: the names of the classes.
    """
    settings, preprocessing = manifest["settings"], manifest["preprocessing"]
    evaluation = manifest["evaluation"]
    plain = settings.get("shortcut") == "none"
    rows = [
        f"| `{entry['path']}` | {entry['bytes'] / 1e6:.2f} MB | {entry['right']} of "
        f"{entry['images']} | {entry['agreement']:.2%} | {entry['loss_interval'][0]:+.2f} to "
        f"{entry['loss_interval'][1]:+.2f} points | {entry['latency_ms']:.2f} ms |"
        for entry in manifest["artifacts"].values()
    ]
    if "recipe" in settings:
        made = f"trained on {settings['dataset']} by keras_resnet"
        history = _RECIPE.format(**settings)
    else:
        made = f"with weights of {settings.get('publisher', settings['weights'])}"
        history = "\n".join(
            f"| {key} | {settings[key]} |"
            for key in ("weights", "licence", "published_top1")
            if key in settings
        )
    values = preprocessing | dict(
        name=manifest["name"],
        kind="Plain net" if plain else "Residual net",
        made=made,
        checked=evaluation["dataset"],
        history=history,
        classes=len(classes),
        cover_height=round(preprocessing["height"] / preprocessing["crop"]),
        cover_width=round(preprocessing["width"] / preprocessing["crop"]),
        right=evaluation["keras_right"],
        images=evaluation["images"],
        accuracy=evaluation["keras_right"] / evaluation["images"],
        rows="\n".join(rows),
        latency=manifest["latency"],
        machine=manifest["machine"],
    )
    return _CARD.format(**values)
