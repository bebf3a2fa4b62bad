"""python fake_run.py RUN STAGES: a run of the row stages with the fake generator, to be killed at any moment."""
import sys
import time

from fake_generator import FakeGenerator, seed_rows

from harmaug import pipeline
from harmaug.augment import AugmentConfig
from harmaug.runs import RunFolder


def teacher(prompts, responses):
    time.sleep(0.002)
    return [0.1 + 0.8 * (len(p) % 7) / 7 for p in prompts]


def main(folder, batch_size=8, slow=0.0):
    from harmaug.respond import RespondConfig

    with RunFolder(folder) as run:
        generator = FakeGenerator(slow)
        pipeline.augment(run, generator, seed_rows(), config=AugmentConfig(samples=90, benign=30, seed=3), batch_size=batch_size, quiet=True)
        pipeline.respond(run, generator, config=RespondConfig(responses="pairs", limit=40), batch_size=batch_size, quiet=True)
        pipeline.label(run, teacher, seed_rows(), quiet=True, batch_size=batch_size)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
