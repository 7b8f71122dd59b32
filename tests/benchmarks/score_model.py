"""How often the embedded model's pictures hold what their captions say: `make bench-model`.

The judge learned from the generator's pictures alone; its own errors stand first, on pictures that the generator drew.
The captions are held out: their scenes come from a seed of their own.
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
from tests.benchmarks.judge import HELD_OUT, made, psnr
from tests.benchmarks.trained_judge import held_out, table, trained


def reconstruction(task: Generate, count: int) -> float:
    """PSNR in dB of held-out pictures that the autoencoder encoded (mean) and decoded, as 8-bit pictures."""
    wanted = stack_pixels(SCENES.examples(HELD_OUT, 0, count, task.stack.native_size[0]))
    with torch.inference_mode():
        rebuilt = torch.cat([task.stack.decode(task.stack.autoencoder.encode(part)) for part in wanted.split(16)])
    levels = lambda pixels: ((pixels / 2 + 0.5).clamp(0, 1) * 255).round()  # noqa: E731
    return psnr(float((levels(wanted) - levels(rebuilt)).square().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "shapes")
    parser.add_argument("--count", type=int, default=100, help="captions of each kind")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task, judge = Generate(load_stack(options.model), RowDefaults()), trained()
    print(f"autoencoder, 256 held-out pictures: {reconstruction(task, 256):.1f} dB PSNR")
    print(f"attributes right, {options.count} held-out captions each")
    for things in (1, 2, 3):
        wanted = held_out(things, options.count)
        rows = [{"prompt": scene.caption()} for scene in wanted]
        table(judge, f"{things} thing(s), the generator's own", [np.asarray(draw(scene)) for scene in wanted], wanted)
        table(judge, f"{things} thing(s), model", made(task, rows), wanted)
        unguided = made(task, [row | {"guidance_scale": 1.0} for row in rows])
        table(judge, f"{things} thing(s), model, guidance 1", unguided, wanted)


if __name__ == "__main__":
    main()
