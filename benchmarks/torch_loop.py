"""PyTorch training of ResNet-20 with the paper's recipe for `benchmarks.accuracy`.

python -m benchmarks.torch_loop DATA.npz OUTPUT.csv EPOCHS SEED
"""

import sys
import time

import numpy as np
import torch

from benchmarks.torch_nets import build, make_step
from keras_resnet.support import to_csv, write_file

BATCH_SIZE = 128


def augment(images, rng):
    """Pads images, (n, c, height, width), by 4 pixels. Crops and flips at random."""
    num_images, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, num_images), generator=rng)
    y = top[:, None] + torch.arange(height)
    x = left[:, None] + torch.arange(width)
    is_flipped = torch.rand(num_images, generator=rng) < 0.5
    x = torch.where(is_flipped[:, None], x.flip(1), x)
    i = torch.arange(num_images)[:, None, None]
    crops = padded.permute(0, 2, 3, 1)[i, y[:, :, None], x[:, None]]
    return crops.permute(0, 3, 1, 2)


def main(data_path, output_path, epochs, seed):
    """Trains the network and writes a CSV file with a row for each epoch."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    arrays = np.load(data_path)
    images, labels, test_images, test_labels = (
        torch.from_numpy(arrays[key]) for key in ("x", "y", "test_x", "test_y")
    )
    images, test_images = images.permute(0, 3, 1, 2), test_images.permute(0, 3, 1, 2)
    network = build("resnet20", 10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-4)
    total_steps = epochs * -(-len(images) // BATCH_SIZE)
    drop_steps = [total_steps // 2, total_steps * 3 // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drop_steps)
    step = make_step(network, optimizer)
    rows, seconds = [], 0.0
    for epoch in range(epochs):
        network.train()
        start = time.monotonic()
        for indices in torch.randperm(len(images), generator=rng).split(BATCH_SIZE):
            batch = augment(images[indices], rng)
            batch = batch.contiguous(memory_format=torch.channels_last)
            step(batch, labels[indices].long())
            schedule.step()
        seconds += time.monotonic() - start
        network.eval()
        test_batches = zip(test_images.split(500), test_labels.split(500), strict=True)
        with torch.no_grad():
            num_correct = sum(
                (network((x.float() - 127.5) / 64).argmax(1) == y).sum().item()
                for x, y in test_batches
            )
        accuracy = num_correct / len(test_labels)
        rows.append({"epoch": epoch + 1, "seconds": seconds, "val_accuracy": accuracy})
        print(
            f"Epoch {epoch + 1}/{epochs} - {accuracy:.4f} - {seconds:.0f} s", flush=True
        )
    write_file(output_path, to_csv(rows))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
