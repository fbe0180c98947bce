"""Train an embedded network on generated scenes from scratch, and measure it on 1,000 scenes it never saw.

    python benchmarks/train_scenes.py                # the ResNet
    python benchmarks/train_scenes.py --network vit  # the transformer

Most steps see close-ups of 64 x 64 pixels around an object, which cost a quarter and show the shapes well;
the last ones see whole scenes. The commands above made the embedded weights, in 13.9 minutes on 2 cores
and in 17.7 minutes of processor time on 2 threads.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from saliency.scenes import CLASSES, SceneNet, SceneTransformer, make_scene, scene_network
from saliency.scenes.network import VIT_WEIGHTS, WEIGHTS
from saliency.scenes.precision import average_precision

TRAINING_SEED = 1_000_000
HELD_OUT = 1_000
CELL = 8


class Scenes(NamedTuple):
    """Images (n, 3, 128, 128) in bytes, the part of each 8 x 8 cell a class fills (n, 8, 16, 16), labels (n, 8)."""

    images: Tensor
    cells: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """Images (n, 3, h, h) in [0, 1], labels (n, 8), and the weight of each label in the loss (n, 8)."""

    images: Tensor
    labels: Tensor
    weights: Tensor


Cut = Callable[[Scenes, Tensor], Batch]
Network = SceneNet | SceneTransformer


class Training(NamedTuple):
    """How to train a network: steps on close-ups and on whole scenes, their learning rates, and where it is stored.

    What follows convolutions has its own factor on the learning rate, and all gradients together a largest norm.
    """

    build: Callable[[], Network]
    close_ups: int
    whole: int
    rates: tuple[float, float]
    factor: float
    norm: float
    output: Path


TRAININGS = {
    "resnet": Training(SceneNet, 3_600, 1_300, (1e-2, 4e-3), 1.0, float("inf"), WEIGHTS),
    "vit": Training(SceneTransformer, 3_000, 900, (1e-2, 3e-3), 0.3, 1.0, VIT_WEIGHTS),
}


def pixels_and_cells(seed: int) -> tuple[bytes, bytes]:
    """Draw one scene as bytes, which are cheap to send between processes."""
    scene = make_scene(seed)
    masks = torch.stack([scene.class_mask(label) for label in range(len(CLASSES))])
    pixels = (scene.image * 255.0).round().to(torch.uint8)
    cells = functional.avg_pool2d(masks.float(), CELL) * 64.0
    return pixels.numpy().tobytes(), cells.to(torch.uint8).numpy().tobytes()


def generate(n: int, seed: int, workers: int) -> Scenes:
    """Draw the scenes of ``n`` seeds."""
    images = torch.empty(n, 3, 128, 128, dtype=torch.uint8)
    cells = torch.empty(n, len(CLASSES), 16, 16, dtype=torch.uint8)
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        scenes = pool.imap(pixels_and_cells, range(seed, seed + n), chunksize=64)
        for index, (pixels, filled) in enumerate(scenes):
            images[index] = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(3, 128, 128)
            cells[index] = torch.frombuffer(bytearray(filled), dtype=torch.uint8).view(-1, 16, 16)
    return Scenes(images, cells.float() / 64.0, (cells.amax((2, 3)) > 0).float())


def whole(scenes: Scenes, index: Tensor) -> Batch:
    """Take whole scenes."""
    labels = scenes.labels[index]
    return Batch(scenes.images[index].float() / 255.0, labels, torch.ones_like(labels))


def close_ups(scenes: Scenes, index: Tensor, side: int = 8) -> Batch:
    """Cut ``side`` x ``side`` cells around a random part of an object out of each scene.

    A class is present if half of its visible pixels are in the close-up; it does not count with 10 % to 50 %.
    """
    cells = scenes.cells[index]
    centre = torch.multinomial(cells.sum(1).flatten(1), 1)[:, 0]
    corner = torch.stack([centre // 16, centre % 16], 1) - side // 2 + torch.randint(-2, 3, (len(index), 2))
    corners = corner.clamp(0, 16 - side).tolist()
    cut = [cells[i, :, row : row + side, column : column + side] for i, (row, column) in enumerate(corners)]
    share = torch.stack(cut).sum((2, 3)) / cells.sum((2, 3)).clamp(min=1e-6)
    windows = [
        scenes.images[i, :, row * CELL : (row + side) * CELL, column * CELL : (column + side) * CELL]
        for i, (row, column) in zip(index.tolist(), corners, strict=True)
    ]
    sure = (share < 0.1) | (share >= 0.5)
    return Batch(torch.stack(windows).float() / 255.0, (share >= 0.5).float(), sure.float())


def vary(images: Tensor) -> Tensor:
    """Turn and mirror a batch, and swap its colours, at random."""
    images = images[:, torch.randperm(3)].rot90(int(torch.randint(4, ())), (2, 3))
    images = images.flip(3) if torch.rand(()) < 0.5 else images
    return images.contiguous(memory_format=torch.channels_last)


def train(network: Network, scenes: Scenes, cut: Cut, steps: int, rate: float, options: argparse.Namespace) -> None:
    """Train with AdamW on one cycle of the learning rate, on what ``cut`` takes of the scenes."""
    training = TRAININGS[options.network]
    groups, rates = parameter_groups(network), [rate, rate * training.factor]
    optimizer = torch.optim.AdamW(groups, rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates[: len(groups)], steps, pct_start=0.2)
    start, total = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        batch = cut(scenes, torch.randint(len(scenes.images), (options.batch_size,)))
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            logits = network(vary(batch.images)).float()
        loss = functional.binary_cross_entropy_with_logits(logits, batch.labels, batch.weights)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), training.norm)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            seconds = time.perf_counter() - start
            print(f"{cut.__name__} {step}/{steps}  loss {total / 100:.4f}  {seconds:.0f} s", flush=True)
            total = 0.0


def parameter_groups(network: Network) -> list[dict[str, list[Parameter]]]:
    """All parameters of a convolutional network; of a transformer those of its convolutional stem, and the others."""
    if isinstance(network, SceneNet):
        return [{"params": [*network.parameters()]}]
    stem = [*network.patch_embed.parameters()]
    named = network.named_parameters()
    return [{"params": stem}, {"params": [value for name, value in named if not name.startswith("patch_embed.")]}]


def save(network: Network, path: Path) -> None:
    """Write the state dict, in half precision."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    torch.save({name: value.contiguous() for name, value in state.items()}, path)


def measure(network: Network, scenes: Scenes) -> Tensor:
    """Average precision of each class (8,)."""
    with torch.no_grad():
        logits = [network(images.float() / 255.0) for images in torch.split(scenes.images, 100)]
    return average_precision(torch.cat(logits), scenes.labels)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=TRAININGS, default="resnet", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="file of the weights (default: the embedded one)")
    parser.add_argument("--scenes", type=int, default=14_000, help="scenes to train on (default: %(default)s)")
    parser.add_argument("--close-ups", type=int, help="steps on close-ups (default: the network's)")
    parser.add_argument("--whole", type=int, help="steps on whole scenes (default: the network's)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the training (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw scenes (default: %(default)s)")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor has bfloat16")
    options = parser.parse_args()
    for name in ("output", "close_ups", "whole"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(TRAININGS[options.network], name))
    return options


def main() -> None:
    """Generate, train, save, and measure what was saved."""
    options, start = parse(), time.perf_counter()
    training = TRAININGS[options.network]
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    scenes = generate(options.scenes, TRAINING_SEED, options.workers)
    print(f"{options.scenes} scenes in {time.perf_counter() - start:.0f} s", flush=True)
    network = training.build().train().to(memory_format=torch.channels_last)
    train(network, scenes, close_ups, options.close_ups, training.rates[0], options)
    train(network, scenes, whole, options.whole, training.rates[1], options)
    save(network, options.output)
    seconds, processor = time.perf_counter() - start, time.process_time()
    size = options.output.stat().st_size
    print(f"trained in {seconds:.0f} s, {processor:.0f} s of them on a processor; {size} bytes", flush=True)
    precision = measure(scene_network(options.output), generate(HELD_OUT, 0, options.workers))
    for name, value in zip(CLASSES, precision.tolist(), strict=True):
        print(f"{name:10} {value:.4f}")
    print(f"mean average precision on {HELD_OUT} held-out scenes: {precision.mean():.4f}")


if __name__ == "__main__":
    main()
