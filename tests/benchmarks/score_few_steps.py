"""Attributes right and images per second of a distilled checkpoint at a few steps, and of its teacher.

`python -m tests.benchmarks.score_few_steps STUDENT`; the captions and the scene reader are those of `score_model`. The
speed is the best of three runs of 32 images; both checkpoints run alternately.
"""

import argparse
import time
from typing import Any

import torch

from pipeline.config import RowDefaults
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import checkpoint_folder
from pipeline.tasks.generate import Generate
from tests.benchmarks.attributes import generate_images
from tests.benchmarks.scene_reader import held_out, load_reader, print_accuracy

TIMED_IMAGES = 32


def seconds(task: Generate, row: dict[str, Any]) -> float:
    """Return the time of TIMED_IMAGES images."""
    rows = [row | {"prompt": scene.caption()} for scene in held_out(2, TIMED_IMAGES)]
    started = time.perf_counter()
    generate_images(task, rows)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("--teacher", default="shapes")
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--count", type=int, default=60, help="captions of one, two and three things each")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    teacher, student = (
        Generate(load_stack(checkpoint_folder(model)), RowDefaults()) for model in (options.teacher, options.student)
    )
    runs = {f"{steps} steps": (student, {"num_inference_steps": steps}) for steps in options.steps}
    runs = {"teacher": (teacher, {})} | runs
    reader = load_reader()
    for things in (1, 2, 3):
        targets = held_out(things, options.count)
        for name, (task, row) in runs.items():
            images = generate_images(task, [row | {"prompt": scene.caption()} for scene in targets])
            print_accuracy(reader, f"{things} thing(s), {name}", images, targets)
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(3):
        for name, (task, row) in runs.items():
            best[name] = min(best[name], seconds(task, row))
    for name, spent in best.items():
        print(f"{name:<10} {TIMED_IMAGES / spent:6.1f} images/s")


if __name__ == "__main__":
    main()
