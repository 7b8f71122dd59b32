"""The fraction of a caption's attributes that the embedded model's images have: `make bench-model`.

A trained scene reader checks the images; its own errors, on drawn scenes, are printed first. The captions are held
out: their scenes come from a seed that no recipe uses.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from pipeline.config import RowDefaults
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import EMBEDDED
from pipeline.tasks.generate import Generate
from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import SCENES, stack_pixels
from tests.benchmarks.attributes import HELD_OUT, generate_images, psnr
from tests.benchmarks.scene_reader import held_out, load_reader, print_accuracy


def reconstruction(task: Generate, count: int) -> float:
    """Return the PSNR in dB, at 8 bits, of held-out images that are encoded to the posterior's mean and decoded."""
    targets = stack_pixels(SCENES.examples(HELD_OUT, 0, count, task.stack.native_size[0]))
    with torch.inference_mode():
        decoded = torch.cat([task.stack.decode(task.stack.autoencoder.encode(part)) for part in targets.split(16)])
    levels = lambda pixels: ((pixels / 2 + 0.5).clamp(0, 1) * 255).round()  # noqa: E731
    return psnr(float((levels(targets) - levels(decoded)).square().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "shapes")
    parser.add_argument("--count", type=int, default=100, help="captions of one, two and three things each")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task, reader = Generate(load_stack(options.model), RowDefaults()), load_reader()
    print(f"autoencoder, 256 held-out images: {reconstruction(task, 256):.1f} dB PSNR")
    print(f"attributes right, {options.count} held-out captions each")
    for things in (1, 2, 3):
        targets = held_out(things, options.count)
        rows = [{"prompt": scene.caption()} for scene in targets]
        print_accuracy(reader, f"{things} thing(s), drawn", [np.asarray(draw(scene)) for scene in targets], targets)
        print_accuracy(reader, f"{things} thing(s), model", generate_images(task, rows), targets)
        unguided = generate_images(task, [row | {"guidance_scale": 1.0} for row in rows])
        print_accuracy(reader, f"{things} thing(s), model, guidance 1", unguided, targets)


if __name__ == "__main__":
    main()
