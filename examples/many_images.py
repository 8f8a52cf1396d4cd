"""Answers questions about many pictures, in batches, into a folder of Parquet; run it twice.

    python examples/many_images.py
    python examples/many_images.py --model my-model/ photos/ answers/ --prompt "What is this?"

Needs pyarrow: pip install 'lightkv-gnn[batch]'.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lightkv_gnn import tiny
from lightkv_gnn.batch import LocalEngine, Settings, run_batch


def draw(folder: Path, number: int) -> None:
    """Pictures for the bundled model; the last one is broken."""
    folder.mkdir(exist_ok=True)
    for seed in range(number):
        scene = tiny.sample_scene(np.random.default_rng(seed))
        tiny.render(scene).save(folder / f"{seed:03}.png")
    (folder / "broken.png").write_bytes(b"not a picture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="?", type=Path, default=Path("pictures"))
    parser.add_argument("answers", nargs="?", type=Path, default=Path("answers"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompt", default="list the objects .")
    options = parser.parse_args()
    if not options.pictures.exists():
        draw(options.pictures, number=6)

    settings = Settings(options.model, retention=0.55, max_new_tokens=16)
    done = run_batch(
        options.pictures,
        options.answers,
        settings,
        LocalEngine(batch=4),  # RayEngine(batch=4, workers=2) for several processes or machines
        prompt=options.prompt,
        rows_per_part=100,
    )
    print(f"{done.answered} answered, {done.failed} failed, {done.done_before} done before")
    for row in pq.read_table(options.answers).to_pylist():
        share = row["kv_bytes"] / row["kv_bytes_full"]
        print(f"{row['id']}: {row['answer']} ({share:.0%} of the cache)")
    if done.errors.exists():
        print(done.errors.read_text(), end="")


if __name__ == "__main__":
    main()
