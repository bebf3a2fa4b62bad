"""Each row stage on a local Ray cluster of two workers, of which one is killed midway: the rows without Ray. HARMAUG_MODELS: filled by `harmaug models fetch smollm2`."""
import io
import os
import signal
import sys
from importlib import resources
from pathlib import Path

import pytest
import ray

from harmaug import engines, pipeline, runs
from harmaug.augment import AugmentConfig
from harmaug.data import DataError, read_rows
from harmaug.generator import CausalLM
from harmaug.respond import RespondConfig
from harmaug.runs import RunFolder
from harmaug.score import score_stream
from harmaug.teacher import CachedTeacher, CallableTeacher, GuardTeacher, label_rows

pytestmark = pytest.mark.filterwarnings("ignore")      # Ray's own

FILES = ("instructions.jsonl", "rejected.jsonl", "pairs.jsonl", "pairs_rejected.jsonl", "labelled.jsonl")


class Dying:
    """What it wraps; the first worker that it has given `at` samples or batches of scores kills itself."""

    def __init__(self, inner, mark, at):
        self.inner, self.mark, self.at, self.given, self.driver = inner, mark, at, 0, os.getpid()
        self.name, self.licence = getattr(inner, "name", "guard"), getattr(inner, "licence", None)

    def chat_prompt(self, messages, prefix=""):
        return self.inner.chat_prompt(messages, prefix)

    def stream(self, *args, **options):
        for item in self.inner.stream(*args, **options):
            self.count()
            yield item

    def score(self, prompts, responses=None):
        self.count()
        return self.inner.score(prompts, responses)

    def count(self):
        self.given += 1
        if os.getpid() != self.driver and self.given == self.at:
            try:
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, _node_ip_address="127.0.0.1", log_to_driver=False,
             logging_level="ERROR")     # it gives its own processes 15 seconds to start: no machine for ten things at once
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def lm():
    return CausalLM.from_pretrained("smollm2", n_threads=1)


@pytest.fixture(scope="module")
def guard():
    return GuardTeacher.from_pretrained("standin", n_threads=1)


def stages(folder, lm, guard, engine, dying):
    """The three stages of a run; `dying` wraps what a stage runs on."""
    seeds = read_rows(str(resources.files("harmaug") / "data" / "seed.jsonl"))[:60]
    with RunFolder(folder) as run:
        pipeline.augment(run, dying("augment", lm, 6), seeds, config=AugmentConfig(samples=24, benign=16, rows_per_draw=4, max_new_tokens=24), batch_size=8,
                         engine=engine, quiet=True)
        pipeline.respond(run, dying("respond", lm, 3), config=RespondConfig(responses="pairs", max_new_tokens=12), batch_size=4, engine=engine, quiet=True)
        pipeline.label(run, dying("label", guard, 2), seeds, name="standin", batch_size=8, engine=engine, quiet=True)
    return {name: (Path(folder) / name).read_bytes() for name in FILES}


def test_augment_respond_and_label_with_a_worker_killed_in_each(tmp_path, lm, guard):
    def dying(stage, inner, at):
        made = Dying(inner, str(tmp_path / f"killed.{stage}"), at)
        return (lambda: made) if stage == "label" else made

    want = stages(tmp_path / "local", lm, guard, "local", dying)
    assert not list(tmp_path.glob("killed.*")) and all(want[name] for name in ("instructions.jsonl", "pairs.jsonl", "labelled.jsonl"))
    assert stages(tmp_path / "ray", lm, guard, "ray", dying) == want
    assert len(list(tmp_path.glob("killed.*"))) == 3
    accounts = [{name: {k: v for k, v in entry["account"].items() if k != "seconds"} for name, entry in runs.read_info(tmp_path / f)["stages"].items()}
                for f in ("local", "ray")]
    assert accounts[0] == accounts[1]


def test_score_with_a_worker_killed(tmp_path, guard):
    text = b"".join(b'{"n": %d, "prompt": "row number %d", "response": null}\n' % (i, i * i) for i in range(120))
    want, got = io.BytesIO(), io.BytesIO()
    score_stream(guard.guard, io.BytesIO(text), want, batch_size=8)
    score_stream(Dying(guard.guard, str(tmp_path / "killed"), 3), io.BytesIO(text), got, batch_size=8, engine="ray")
    assert got.getvalue() == want.getvalue() and (tmp_path / "killed").exists()


def test_errors_early_results_and_what_dies_again_and_again(tmp_path, monkeypatch):
    read = []

    def rows():
        for i in range(1000):
            read.append(i)
            yield i

    def squares(batch):
        for x in batch:
            if x == 30:
                raise DataError("set, row 30: wrong")
            yield x * x

    mapped = engines.map_rows(squares, rows(), engine="ray", batch_size=4)
    assert next(mapped) == (0, 0) and len(read) <= 16 + 4      # not all at once
    with pytest.raises(DataError, match="^set, row 30: wrong$"):
        list(mapped)
    assert len(read) < 80
    with pytest.raises(ValueError, match="the cluster's largest machine has 2 CPUs"):
        list(engines.map_rows(squares, [1], engine="ray:3"))
    monkeypatch.setattr(engines, "_RESTARTS", 0)
    with pytest.raises(ChildProcessError, match="a Ray worker died more than 0 times"):
        list(engines.map_rows(lambda batch: os._exit(1), [1], engine="ray:2"))


def test_the_cache_of_scores_is_this_machines(tmp_path, monkeypatch):
    monkeypatch.setenv("HARMAUG_CACHE", str(tmp_path / "cache"))
    rows = [(f"row {i}", row) for i, row in enumerate(read_rows(str(resources.files("harmaug") / "data" / "seed.jsonl"))[:20])]
    teacher = CachedTeacher(CallableTeacher(lambda prompts, responses: [len(p) % 10 / 10 for p in prompts], "length"), "1")
    want = list(label_rows(teacher, rows[:10], batch_size=4))
    assert list(label_rows(teacher, rows, batch_size=4, engine="ray"))[:10] == want and teacher.account == {"cached": 10}
    again = CachedTeacher(CallableTeacher(lambda prompts, responses: 1 / 0, "length"), "1")
    assert list(label_rows(again, rows, batch_size=4, engine="ray"))[:10] == want and again.account == {"cached": 20}
