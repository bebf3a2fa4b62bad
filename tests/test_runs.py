"""harmaug.runs: torn lines, gaps, kill -9, Ctrl-C, a full disk, locks, and what may not be mixed."""
import errno
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import fake_run
import pytest
from fake_generator import FakeGenerator, seed_rows
from sizes import some

from harmaug import pipeline, report, runs
from harmaug.augment import AugmentConfig
from harmaug.data import DataError
from harmaug.runs import Journal, RowFile, RunError, RunFolder

HERE = Path(__file__).parent
KILLS, CUTS = some(30, 6), some(30, 4)
FILES = ("instructions.jsonl", "rejected.jsonl", "pairs.jsonl", "pairs_rejected.jsonl", "labelled.jsonl")


def start(folder, batch_size=8, slow=0.0, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])}
    return subprocess.Popen([sys.executable, str(HERE / "fake_run.py"), str(folder), str(batch_size), str(slow)], env=environment, stderr=subprocess.PIPE, **options)


def files(folder):
    return {name: (Path(folder) / name).read_bytes() for name in FILES if (Path(folder) / name).exists()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    fake_run.main(folder)
    return files(folder), json.loads((folder / "run.json").read_text()), folder


def counts(info):
    return {name: stage["account"] for name, stage in info["stages"].items()}


def test_rows_and_accounts_of_the_unbroken_run(unbroken):
    rows, info, _ = unbroken
    assert set(rows) == set(FILES) and all(rows.values())
    augment, respond, label = (info["stages"][name]["account"] for name in ("augment", "respond", "label"))
    assert augment["asked"] == augment["done"] == 120 == rows["instructions.jsonl"].count(b"\n") + rows["rejected.jsonl"].count(b"\n")
    assert respond["asked"] == respond["done"] == 80 and respond["contradicts"] > 0 and respond["refusal"] > 0 and respond["compliance"] > 0
    assert label["done"] == label["rows"] == 81 + augment["kept"] + respond["kept"] == rows["labelled.jsonl"].count(b"\n")
    assert all(stage["done"] for stage in info["stages"].values()) and info["machine"]["cpu_isa"]
    keys = [json.loads(line)["key"] for line in rows["labelled.jsonl"].splitlines()]
    assert keys == list(range(len(keys)))


@pytest.mark.parametrize("batch_size", [1, 32])
def test_same_bytes_whatever_the_batch_size(tmp_path, unbroken, batch_size):
    fake_run.main(tmp_path / "run", batch_size)
    assert files(tmp_path / "run") == unbroken[0]


def test_same_bytes_after_kill_9_at_any_moment(tmp_path, unbroken):
    """Killed several times: at random moments after the first row, and each time with a random number of new rows."""
    rng = random.Random(11)
    folder = tmp_path / "run"
    kills = 0
    for _ in range(KILLS):
        process = start(folder, slow=0.002)
        before = sum(map(len, files(folder).values())) if folder.exists() else 0
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline and (sum(map(len, files(folder).values())) if folder.exists() else 0) <= before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stderr.close()
        for name, content in files(folder).items():
            assert unbroken[0][name].startswith(content[:content.rfind(b"\n") + 1])
    assert kills >= 3
    fake_run.main(folder)
    assert files(folder) == unbroken[0]
    assert counts(json.loads((folder / "run.json").read_text())) == counts(unbroken[1])


def test_same_bytes_after_a_cut_at_any_byte(tmp_path, unbroken):
    """Whatever a crash leaves of the files' tails, the next run mends."""
    rng = random.Random(12)
    for i in range(CUTS):
        folder = tmp_path / str(i)
        shutil.copytree(unbroken[2], folder)
        info = json.loads((folder / "run.json").read_text())
        for name in ("instructions.jsonl", "rejected.jsonl"):
            os.truncate(folder / name, rng.randrange((folder / name).stat().st_size))
        for name in ("pairs.jsonl", "pairs_rejected.jsonl", "labelled.jsonl"):
            os.unlink(folder / name)
        info["stages"] = {"augment": {**info["stages"]["augment"], "done": False}}
        (folder / "run.json").write_text(json.dumps(info))
        fake_run.main(folder)
        assert files(folder) == unbroken[0]


def test_ctrl_c_loses_nothing(tmp_path, unbroken):
    process = start(tmp_path / "run", slow=0.01)
    while not (tmp_path / "run" / "instructions.jsonl").exists() or not (tmp_path / "run" / "instructions.jsonl").stat().st_size:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in error and process.returncode != 0
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not info["stages"]["augment"]["done"]
    fake_run.main(tmp_path / "run")
    assert files(tmp_path / "run") == unbroken[0]


def test_a_full_disk_loses_nothing(tmp_path, unbroken):
    """Files may not pass 10,000 bytes: the write that would fails, the row before it stays whole."""
    process = start(tmp_path / "run", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)))
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and b"instructions.jsonl" in error and b"File too large" in error
    content = files(tmp_path / "run")["instructions.jsonl"]
    assert content.endswith(b"\n") and unbroken[0]["instructions.jsonl"].startswith(content)
    fake_run.main(tmp_path / "run")
    assert files(tmp_path / "run") == unbroken[0]


def test_an_interrupt_in_the_account_of_diversity_loses_no_account(tmp_path, monkeypatch):
    rows, config = seed_rows(), AugmentConfig(samples=8, benign=0)
    with monkeypatch.context() as patch, RunFolder(tmp_path) as run, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline.diversity, "summary", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        pipeline.augment(run, FakeGenerator(), rows, config=config, quiet=True)
    with RunFolder(tmp_path) as run:
        assert not run.info["stages"]["augment"]["done"] and run.info["stages"]["augment"]["account"]["done"] == 8
        pipeline.augment(run, FakeGenerator(), rows, config=config, quiet=True)
        assert run.info["stages"]["augment"]["done"] and run.info["stages"]["augment"]["diversity"]


def test_a_row_that_is_half_written_when_the_disk_is_full_is_taken_back(tmp_path, monkeypatch):
    file = RowFile(tmp_path / "rows.jsonl")
    file.append({"key": 0})
    write, calls = os.write, []

    def full(handle, line):
        calls.append(line)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, line[:4])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device.*rows.jsonl"):
        file.append({"key": 1})
    file.close()
    assert (tmp_path / "rows.jsonl").read_text() == '{"key":0}\n' and calls == [b'{"key":1}\n', b'y":1}\n']


@pytest.mark.parametrize("tail", [b'{"key":2', b'{"key":2}garbage\n', b"\x00\x00\x00", b"\xff\n", b'"text"\n', b"[" * 5000 + b"\n"])
def test_a_torn_last_line_is_cut_away(tmp_path, tail, caplog):
    (tmp_path / "rows.jsonl").write_bytes(b'{"key":0}\n{"key":1}\n' + tail)
    with Journal(tmp_path / "rows.jsonl") as journal:
        assert journal.next_key == 2 and len(journal.kept_rows) == 2
        journal.append({"key": 2, "a": "\u00e4"})
    assert (tmp_path / "rows.jsonl").read_bytes() == b'{"key":0}\n{"key":1}\n{"key":2,"a":"\xc3\xa4"}\n'
    assert "torn last line" in caplog.text


def test_rows_after_a_gap_are_made_again(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text('{"key":0}\n{"key":3}\n{"key":4}\n')
    (tmp_path / "b.jsonl").write_text('{"key":1}\n')
    with Journal(tmp_path / "a.jsonl", tmp_path / "b.jsonl") as journal:
        assert journal.next_key == 2 and journal.kept_rows == [{"key": 0}] and journal.rejected_rows == [{"key": 1}]
    assert (tmp_path / "a.jsonl").read_text() == '{"key":0}\n' and "2 rows after a gap" in caplog.text


@pytest.mark.parametrize("content, message", [
    (b'{"key":0}\nnonsense\n{"key":1}\n', "rows.jsonl, line 2: wrong JSON"), (b'{"key":0}\n[]\n{"key":1}\n', "rows.jsonl, line 2: wrong JSON: expected an object"),
    (b'{"key":0}\n"\xff"\n{"key":1}\n', "rows.jsonl, line 2: not UTF-8"), (b'{"prompt":"x"}\n', "rows.jsonl: a row lacks its key"),
    (b'{"key":true}\n', "rows.jsonl: a row lacks its key"),
])
def test_damage_that_no_crash_makes_is_named_and_nothing_is_cut(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises((DataError, RunError), match=message):
        Journal(tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_bytes() == content


@pytest.mark.parametrize("stage, file, column, value", [
    ("augment", "rejected.jsonl", "kind", None), ("augment", "rejected.jsonl", "reason", "odd"), ("augment", "instructions.jsonl", "id", 3),
    ("respond", "pairs_rejected.jsonl", "intent", None), ("label", "labelled.jsonl", "category", None), ("label", "labelled.jsonl", "unsafe-score", None),
])
def test_a_row_that_its_stage_did_not_write_is_named(tmp_path, unbroken, stage, file, column, value):
    shutil.copytree(unbroken[2], tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    info["stages"][stage]["done"] = False
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    rows = [json.loads(line) for line in (tmp_path / "run" / file).read_text().splitlines()]
    rows[1][column] = value
    (tmp_path / "run" / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=f"{file}, line 2: {column} is missing or wrong"):
        fake_run.main(tmp_path / "run")


def test_run_folder_is_private_and_says_what_it_holds(tmp_path):
    with RunFolder(tmp_path / "deep" / "run") as run:
        assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
        assert "MANY OF THEM ARE HARMFUL" in (run / "NOTICE").read_text()
        RowFile(run / "rows.jsonl").close()
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "deep" / "run").iterdir())


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    RunFolder(tmp_path / "run").close()
    (tmp_path / "run" / "guard").mkdir()
    left = (".run.json.abcd1_23", ".scores.jsonl.abcdefgh", "guard/model.safetensors.tmp-12", "guard/.README.md.a_b_c_d_")
    others = {".report.html.abcdefgh", ".run.json.mine", "guard/.gitattributes"}    # of a report that runs, of the user
    for name in (*left, *others):
        (tmp_path / "run" / name).write_text("{")
    RunFolder(tmp_path / "run").close()
    found = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    assert found == {"NOTICE", "lock", "run.json", "guard", *others}


def test_one_process_at_a_time(tmp_path):
    with RunFolder(tmp_path / "run"):
        with pytest.raises(RunError, match=rf"run: in use by another process \(pid {os.getpid()}\)"):
            RunFolder(tmp_path / "run")
    RunFolder(tmp_path / "run").close()


def test_other_folders_and_damaged_run_json(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file: not a folder"):
        RunFolder(tmp_path / "file")
    with pytest.raises(RunError, match="not a run folder: it has files but no run.json"):
        RunFolder(tmp_path)
    RunFolder(tmp_path / "run").close()
    good = (tmp_path / "run" / "run.json").read_bytes()
    for n in range(len(good) - 2):
        (tmp_path / "run" / "run.json").write_bytes(good[:n])
        with pytest.raises(RunError, match="run.json: damaged"):
            RunFolder(tmp_path / "run")
        assert (tmp_path / "run" / "run.json").read_bytes() == good[:n]
    for content in (b"[]", b"\xff", b'{"schema_version": 1, "stages": 3}', b'{"schema_version": 1, "stages": {"augment": 3}}'):
        (tmp_path / "run" / "run.json").write_bytes(content)
        for opened in (RunFolder, report.report_run):
            with pytest.raises(RunError, match="run.json: damaged"):
                opened(tmp_path / "run")
    whole = {"config": {}, "inputs": {}, "made_by": [{}]}
    for entry in ({}, {**whole, "made_by": []}, {**whole, "config": None}, {**whole, "done": True}, {**whole, "account": 3}):
        (tmp_path / "run" / "run.json").write_text(json.dumps({"schema_version": 1, "stages": {"augment": entry}}))
        with pytest.raises(RunError, match=r"run.json: damaged \(.*`\$.stages"):
            RunFolder(tmp_path / "run")
    for begun in ({}, 5):
        (tmp_path / "run" / "run.json").write_text(json.dumps({"schema_version": 1, "stages": {}, "config": begun}))
        with pytest.raises(RunError, match=r"run.json: damaged \(.*`\$.config"):
            RunFolder(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(good)
    for content in (b"[]", b'{"datasets": 3}', b'{"notes": 5}', b'{"datasets": {"a": 3}}', b'{"tables": []}', b"\xff"):
        (tmp_path / "run" / "metrics.json").write_bytes(content)
        with pytest.raises(ValueError, match="metrics.json"):
            report.report_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text('{"schema_version": 9, "stages": {}}')
    with pytest.raises(RunError, match="run.json: schema_version 9, this version reads 1"):
        RunFolder(tmp_path / "run")


def test_other_settings_and_inputs_are_refused(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        run.stage("augment", config={"samples": 5}, inputs={"seed": "a" * 64})
        with pytest.raises(RunError, match=r"stage augment was begun with another samples \(then 5, now 6\)"):
            run.stage("augment", config={"samples": 6}, inputs={"seed": "a" * 64})
        with pytest.raises(RunError, match=r"another seed \(then aaaaaaaaaaaa, now bbbbbbbbbbbb\)"):
            run.stage("augment", config={"samples": 5}, inputs={"seed": "b" * 64})


def test_a_setting_that_an_older_version_did_not_know_had_its_default(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        run.stage("augment", config={"samples": 5})
        options = {"defaults": {"samples": 9, "words": (4,)}}
        assert not run.stage("augment", config={"samples": 5, "words": (4,)}, **options).done
        for config, message in (({"samples": 5, "words": (3,)}, r"another words \(then \[4\], now \[3\]\)"), ({"samples": 9, "words": (4,)}, r"samples \(then 5, now 9\)")):
            with pytest.raises(RunError, match=message):
                run.stage("augment", config=config, **options)


@pytest.mark.parametrize("change", [{"cpu_isa": "scalar"}, {"harmaug": "9"}, {}])
def test_another_machine_or_model_is_refused_unless_mixed(tmp_path, monkeypatch, change):
    here = runs.machine()
    with RunFolder(tmp_path / "run") as run:
        assert run.stage("augment", config={}, models={"lm": "1" * 64}).stamp == {}
    models = {"lm": "1" * 64} if change else {"lm": "2" * 64}
    monkeypatch.setattr(runs, "machine", lambda: {**here, **change})
    with RunFolder(tmp_path / "run") as run, pytest.raises(RunError, match=f"was begun with another {next(iter(change), 'models')} .*--allow-mixed"):
        run.stage("augment", config={}, models=models)
    with RunFolder(tmp_path / "run", allow_mixed=True) as run:
        stamp = run.stage("augment", config={}, models=models).stamp["made_by"]
        assert stamp["models"] == list(models.values()) and stamp["cpu_isa"] == change.get("cpu_isa", here["cpu_isa"])
        run.stage("augment", config={}, models=models).account({}, done=True)
    monkeypatch.setattr(runs, "machine", lambda: here)
    with RunFolder(tmp_path / "run") as run:    # a stage that is done may be read anywhere
        assert run.stage("augment", config={}, models={"lm": "1" * 64}).done


def test_sha256_of_files_and_folders(tmp_path):
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "m" / "a").write_bytes(b"abc")
    assert runs.sha256(tmp_path / "m" / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    one = runs.sha256(tmp_path / "m")
    (tmp_path / "m" / "sub" / "b").write_bytes(b"")
    assert runs.sha256(tmp_path / "m") != one


def test_progress_logs_where_there_is_no_terminal(monkeypatch, caplog):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO"):
        assert list(runs.progress("abcd", 4, "label")) == list("abcd")
    assert "label: 2 of 4" in caplog.text
