"""safetensors and GGUF: against the safetensors and gguf packages, and against hostile files."""
import json
import os
import random
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from safetensors.numpy import load_file, save_file

from harmaug import _C, FormatError


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_reads_what_safetensors_writes(tmp_path, rng):
    arrays = {"w": rng.standard_normal((3, 5)).astype("f4"), "v": np.array(2.5, "f4"), "e": np.zeros((0, 4), "f4"),
              "h": rng.standard_normal((2, 3, 4)).astype("f2"), "ids": np.arange(6).reshape(1, 6)}
    save_file(arrays, tmp_path / "a.safetensors", metadata={"note": "é\n"})
    f = _C.TensorFile(tmp_path / "a.safetensors")
    assert sorted(f.names) == sorted(arrays) and f.metadata == {"note": "é\n"}
    for name in ("w", "v", "e", "h"):
        assert f.info(name)[1] == arrays[name].shape
        np.testing.assert_array_equal(f.read(name), arrays[name].astype("f4"))
        assert f.read(name).dtype == np.float32 and f.read(name).shape == arrays[name].shape
    assert f.info("ids") == ("I64", (1, 6))
    with pytest.raises(FormatError, match="'ids' is stored as I64; read are F32, F16"):
        f.read("ids")
    with pytest.raises(KeyError, match="nope"):
        f.info("nope")
    with pytest.raises(TypeError, match="must be str"):
        f.read(3)


def test_bfloat16(tmp_path, rng):
    bits = rng.integers(0, 2 ** 16, 5_000).astype("u2")
    header = b'{"x":{"dtype":"BF16","shape":[50,100],"data_offsets":[0,10000]}}'
    (tmp_path / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    got = _C.TensorFile(tmp_path / "b.safetensors").read("x")
    np.testing.assert_array_equal(got.view("u4"), (bits.astype("u4") << 16).reshape(50, 100))


def write_gguf(path, tensors, metadata=()):
    writer = gguf.GGUFWriter(path, "llama")
    for add, key, value in metadata:
        getattr(writer, add)(key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1])
def test_dequantisation_equals_gguf(tmp_path, rng, kind):
    x = (rng.standard_normal((37, 96)) * rng.lognormal(sigma=3, size=(37, 1))).astype("f4")
    data = gguf.quants.quantize(x, kind)
    path = write_gguf(tmp_path / "q.gguf", {"q": (data, kind), "v": (x[0], T.F32)})
    f = _C.TensorFile(path)
    assert f.info("q") == (kind.name, (37, 96)) and f.names == ["q", "v"]
    expected = gguf.quants.dequantize(data, kind).astype("f4")
    np.testing.assert_array_equal(f.read("q").view("u4"), expected.view("u4"))
    np.testing.assert_array_equal(f.read("v"), x[0])


def test_dequantisation_of_any_bits(tmp_path, rng):
    """Every scale bit pattern but NaN: infinities, subnormals and negative zero included."""
    scales = np.array([s for s in range(2 ** 16) if (s & 0x7C00) != 0x7C00 or s & 0x3FF == 0], "u2")
    for kind, width, places in ((T.Q8_0, 34, [0]), (T.Q4_0, 18, [0]), (T.Q4_1, 20, [0, 2]), (T.Q4_K, 144, [0, 2]), (T.Q6_K, 210, [208])):
        blocks = rng.integers(0, 256, (len(scales), width)).astype("u1")
        for at in places:
            blocks[:, at:at + 2] = rng.permutation(scales).view("u1").reshape(-1, 2)
        path = write_gguf(tmp_path / f"{kind.name}.gguf", {"q": (blocks, kind)})
        with np.errstate(invalid="ignore"):
            expected = gguf.quants.dequantize(blocks, kind).astype("f4")
        got = _C.TensorFile(path).read("q")
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(got), nan)
        np.testing.assert_array_equal(got[~nan].view("u4"), expected[~nan].view("u4"))


def test_every_type_of_ggml_is_known_by_name_and_size(tmp_path):
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        path = write_gguf(tmp_path / "t.gguf", {"t": (np.zeros((3, size), "u1"), kind)})
        f = _C.TensorFile(path)
        assert f.info("t") == (kind.name, (3, block))
        if kind.name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"):
            assert f.read("t").shape == (3, block)
        else:
            with pytest.raises(FormatError, match=f"'t' is stored as {kind.name}; read are"):
                f.read("t")


METADATA = [("add_uint8", "u8", 200), ("add_int8", "i8", -100), ("add_uint16", "u16", 60000), ("add_int16", "i16", -30000), ("add_uint32", "u32", 2 ** 32 - 1),
            ("add_int32", "i32", -2 ** 31), ("add_uint64", "u64", 2 ** 64 - 1), ("add_int64", "i64", -2 ** 63), ("add_float32", "f32", 0.1), ("add_float64", "f64", 0.1),
            ("add_bool", "yes", True), ("add_bool", "no", False), ("add_string", "text", "é😀\x00"), ("add_array", "words", ["a", "", "ключ"]),
            ("add_array", "ints", [1, -2, 3]), ("add_array", "floats", [0.5, 1.5]), ("add_array", "flags", [True, False])]


def test_metadata(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {}, METADATA)
    got = _C.TensorFile(path).metadata
    expected = {"general.architecture": "llama"} | {k: v for _, k, v in METADATA} | {"f32": float(np.float32(0.1))}
    assert got == expected
    assert all(type(got[k]) is type(expected[k]) for k in expected)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_write_is_read_back(tmp_path, rng, dtype):
    arrays = {"a.weight": rng.standard_normal((70, 300)), 'odd "name"\\\té': np.float32([[1e-8, -0.0, 65519.9, 65520, 3e38, np.inf, -np.inf]]),
              "scalar": np.float32(3), "empty": np.zeros((2, 0)), "tiny": np.ldexp(rng.standard_normal(4_000), rng.integers(-30, 16, 4_000))}
    with np.errstate(over="ignore"):
        _C.write_safetensors(tmp_path / "w.safetensors", arrays, dtype=dtype, metadata={"k": "v"})
        f32 = {k: np.asarray(v, "f4") for k, v in arrays.items()}
        expected = {k: v if dtype == "F32" else v.astype("f2").astype("f4") if dtype == "F16" else bf16(v) for k, v in f32.items()}
    f = _C.TensorFile(tmp_path / "w.safetensors")
    assert f.names == list(arrays) and f.metadata == {"k": "v"}
    for name, value in expected.items():
        assert f.info(name) == (dtype, value.shape)
        np.testing.assert_array_equal(f.read(name).view("u4"), value.view("u4"))
    if dtype != "BF16":     # numpy has none
        theirs = load_file(tmp_path / "w.safetensors")
        assert all(np.array_equal(theirs[k].astype("f4"), expected[k]) for k in expected)
    assert list(tmp_path.iterdir()) == [tmp_path / "w.safetensors"]


def bf16(x):
    bits = np.array(x).view("u4").astype("u8")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype("u4").view("f4")


# -- hostile files: a named error or a valid reading, never a signal ------------------------------

def put_safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def one(dtype="F32", shape=(2, 3), offsets=(0, 24), **more):
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}, **more}


@pytest.mark.parametrize(("header", "message"), [
    (one(shape=(2, 4)), "shape needs 32 bytes, offsets give 24"), (one(offsets=(0, 28)), "outside the 24-byte data section"),
    (one(offsets=(24, 0)), "outside"), (one(offsets=(0, 2 ** 64 - 1)), "outside"), (one(offsets=(0, 2 ** 64)), "non-negative integers"),
    (one(offsets=(-8, 16)), "non-negative integers"), (one(offsets=(0.5, 24)), "non-negative integers"), (one(offsets=("0", 24)), "non-negative"),
    (one(offsets=(0, 24, 24)), "needs dtype"), (one(offsets=(4, 24), shape=(5,)), "4 bytes before tensor 'x' belong to no tensor"),
    (one(offsets=(0, 20), shape=(5,)), "4 bytes at the end belong to no tensor"), (one(shape=(2 ** 32, 2 ** 32)), "overflows 64 bits"),
    (one(shape=(2 ** 62,)), "overflows 64 bits"), (one(shape=(2 ** 31, 2 ** 31, 6)), "overflows"), (one(shape=(2 ** 63, 2, 0)), "overflows"),
    (one(shape=(-2, -3)), "shape must hold non-negative"), (one(shape=(2 ** 64, 0)), "shape must hold"), (one(shape=(2.5, 3)), "shape must hold"),
    (one(shape=(None,)), "shape must hold"), (one(shape=(True, 6)), "shape must hold"), (one(shape=(1,) * 9), "more than 8"),
    (one(dtype="F7"), "unknown dtype 'F7'"), (one(dtype=3), "needs dtype"), (one(dtype="F32\0"), "unknown dtype"), ({"x": 1}, "no object"), ([], "neither"), (b"\n{}", "neither"), (one(shape=(0, 2 ** 62), offsets=(0, 0)), "overflows"), (one(shape=(0, 2 ** 40, 2 ** 40), offsets=(0, 0)), "overflows"),
    ({"x": {}}, "needs dtype"), (b'{"x":1,"x":2}', "twice"), (one(__metadata__=1), "__metadata__ is no object"), (one(__metadata__={"a": 1}), "is no string"),
    ({"x": one()["x"], "y": one()["x"]}, "overlaps"), ({"x": one(shape=(5,), offsets=(0, 20))["x"], "y": one(shape=(2,), offsets=(16, 24))["x"]}, "overlaps"),
    ({"a\0b": one()["x"]}, "NUL character"), (b'{"x":' + b"[" * 10_000, "deeper than 256"), (b'{"x":NaN}', "value was expected"), (b"{\xff}", "key in quotes"),
])
def test_malformed_safetensors(tmp_path, header, message):
    path = put_safetensors(tmp_path / "x.safetensors", header, bytes(24))
    with pytest.raises(FormatError, match=message) as caught:
        _C.TensorFile(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_malformed_safetensors_lengths(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in (0, 1, 2 ** 63, 2 ** 64 - 1, 2 ** 64 - 8, 100_000_001):
        with pytest.raises(FormatError):
            _C.TensorFile(put_safetensors(path, one(), bytes(24), length=length))
    for content in (b"", b"{", b"{}", b"{}      {", b" ", b"PK\x03\x04" + bytes(100), b"\x80\x02}q" * 10, bytes(100), b'{"weight_map": 3}'):
        path.write_bytes(content)
        with pytest.raises(FormatError):
            _C.TensorFile(path)
    put_safetensors(path, b"{}" + b" " * 30)      # padded, and no tensor at all
    assert _C.TensorFile(path).names == []


def test_paths(tmp_path):
    with pytest.raises(OSError, match="nope: No such file"):
        _C.TensorFile(tmp_path / "nope")
    with pytest.raises(OSError, match="holds no model.safetensors"):
        _C.TensorFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a device or a pipe, not a file"):
        _C.TensorFile(tmp_path / "pipe")
    with pytest.raises(ValueError, match="null"):
        _C.TensorFile("a\0b")
    put_safetensors(tmp_path / "model.safetensors", one(), bytes(24))
    assert _C.TensorFile(tmp_path).names == ["x"]
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.safetensors"
    (tmp_path / "model.safetensors").rename(os.fsdecode(odd))
    assert _C.TensorFile(odd).names == ["x"]
    with pytest.raises(OSError, match="No such file"):
        _C.TensorFile(odd + b"x")


def shards(folder, weight_map, files):
    folder.mkdir(exist_ok=True)
    for name, arrays in files.items():
        save_file(arrays, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_sharded(tmp_path, rng):
    a, b = rng.standard_normal((4, 4)).astype("f4"), rng.standard_normal(7).astype("f4")
    folder = shards(tmp_path / "s", {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": {"a": a}, "2.safetensors": {"b": b}})
    for path in (folder, folder / "model.safetensors.index.json"):
        f = _C.TensorFile(path)
        assert f.names == ["a", "b"]
        np.testing.assert_array_equal(f.read("a"), a)
        np.testing.assert_array_equal(f.read("b"), b)


@pytest.mark.parametrize(("weight_map", "error", "message"), [
    ({"a": "../1.safetensors"}, FormatError, "must be the name of a file in the same folder"), ({"a": "/etc/passwd"}, FormatError, "same folder"),
    ({"a": ".."}, FormatError, "same folder"), ({"a": "sub/1.safetensors"}, FormatError, "same folder"), ({"a": "..\\1.safetensors"}, FormatError, "same folder"),
    ({"a": ""}, FormatError, "same folder"), ({"a": 3}, FormatError, "same folder"), ({"a": "1.safetensors\0"}, FormatError, "same folder"),
    ({"a": "x" * 300}, FormatError, "same folder"), ({"a": "gone.safetensors"}, OSError, "gone.safetensors: No such file"),
    ({"a": "1.safetensors", "b": "1.safetensors"}, FormatError, "tensor 'b' is not in '1.safetensors'"),
    ({"a": "2.safetensors", "b": "1.safetensors"}, FormatError, "tensor '.' is not in"), ({"a": "1.safetensors", "b": "3.safetensors"}, FormatError, "stands twice"),
    ([], FormatError, "no weight_map"), (None, FormatError, "no weight_map"), ({"a": "model.safetensors.index.json"}, FormatError, "header of"),
])
def test_malformed_index(tmp_path, weight_map, error, message):
    x = np.zeros(2, "f4")
    folder = shards(tmp_path / "s", weight_map, {"1.safetensors": {"a": x}, "2.safetensors": {"b": x}, "3.safetensors": {"a": x, "b": x}})
    save_file({"a": x}, tmp_path / "1.safetensors")
    with pytest.raises(error, match=message):
        _C.TensorFile(folder)


def u32(*values):
    return b"".join(struct.pack("<I", v) for v in values)


def u64(*values):
    return b"".join(struct.pack("<Q", v) for v in values)


def text(s):
    return u64(len(s)) + s


def info(name=b"x", dims=(8,), kind=0, offset=0):
    return text(name) + u32(len(dims)) + u64(*dims) + u32(kind) + u64(offset)


def gguf_bytes(entries=(), infos=(), data=b"", *, version=3, n_tensors=None, n_entries=None, alignment=32):
    head = b"GGUF" + u32(version) + u64(len(infos) if n_tensors is None else n_tensors, len(entries) if n_entries is None else n_entries)
    head += b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def kv(key, kind, value):
    return text(key) + u32(kind) + value


HUGE = (2 ** 31, 2 ** 32, 2 ** 61, 2 ** 63, 2 ** 64 - 1)


@pytest.mark.parametrize(("content", "message"), [
    (b"GGUF", "ends inside the header"), (gguf_bytes(version=1), "version 1 is not read"), (gguf_bytes(version=4), "version 4"),
    (gguf_bytes(version=0x03000000), "big-endian"), *[(gguf_bytes(n_tensors=n), "do not fit into") for n in HUGE], *[(gguf_bytes(n_entries=n), "do not fit") for n in HUGE],
    (gguf_bytes(n_tensors=1, data=bytes(30)), "ends inside a tensor info|lie outside|ends inside the tensor"),
    *[(gguf_bytes([u64(n) + b"key"], data=bytes(40)), "claims a string of") for n in HUGE], (gguf_bytes([kv(b"k", 13, bytes(40))]), "unknown value type 13"),
    (gguf_bytes([kv(b"k", 7, b"\2" + bytes(40))]), "neither 0 nor 1"), (gguf_bytes([kv(b"k", 8, u64(99) + bytes(40))]), "'k' claims a string"),
    *[(gguf_bytes([kv(b"k", 9, u32(4) + u64(n) + bytes(40))]), "ends inside metadata 'k'") for n in HUGE],
    *[(gguf_bytes([kv(b"k", 9, u32(8) + u64(n) + bytes(40))]), "metadata 'k'") for n in HUGE],
    *[(gguf_bytes([kv(b"k", 9, u32(9) + u64(n) + bytes(40))]), "metadata 'k'") for n in HUGE],
    (gguf_bytes([kv(b"k", 9, u32(14) + u64(1) + bytes(40))]), "unknown value type 14"), (gguf_bytes([kv(b"k", 9, u32(7) + u64(2) + b"\1\3" + bytes(40))]), "bool"),
    (gguf_bytes([kv(b"k", 9, (u32(9) + u64(1)) * 1000)]), "nests arrays deeper"), (gguf_bytes([kv(b"k", 4, u32(1))] * 2), "stands twice"),
    (gguf_bytes([kv(b"\n\xff", 99, bytes(9))]), r"metadata '\?\?' has unknown"),
    *[(gguf_bytes([kv(b"general.alignment", 4, u32(a))], [info()], bytes(64)), "power of two") for a in (0, 3, 48, 2 ** 31)],
    (gguf_bytes([kv(b"general.alignment", 8, text(b"32"))], [info()], bytes(64)), "not a non-negative integer"),
    (gguf_bytes([kv(b"general.alignment", 5, struct.pack("<i", -32))], [info()], bytes(64)), "not a non-negative integer"),
    *[(gguf_bytes(infos=[info(offset=n)], data=bytes(64)), "lie outside|multiple of the alignment") for n in (64, *HUGE)],
    (gguf_bytes(infos=[info(offset=2 ** 64 - 32)], data=bytes(64)), "lie outside"), (gguf_bytes(infos=[info(offset=4)], data=bytes(64)), "multiple of the alignment 32"),
    (gguf_bytes(infos=[info(dims=(17,))], data=bytes(64)), "68 bytes at offset 0 lie outside"), (gguf_bytes(infos=[info(dims=(2 ** 62,))], data=bytes(64)), "overflows 64"),
    (gguf_bytes(infos=[info(dims=(2 ** 32, 2 ** 32))], data=bytes(64)), "overflows"), (gguf_bytes(infos=[info(dims=(2 ** 63,))], data=bytes(64)), "overflows"),
    (gguf_bytes(infos=[info(dims=(0, 2 ** 63))], data=bytes(64)), "overflows"), (gguf_bytes(infos=[info(dims=(1,) * 5)], data=bytes(64)), "5 dimensions"),
    (gguf_bytes(infos=[text(b"x") + u32(2 ** 32 - 1) + bytes(64)], data=bytes(64)), "4294967295 dimensions"),
    (gguf_bytes(infos=[info(kind=4)], data=bytes(64)), "unknown type 4"), (gguf_bytes(infos=[info(kind=2 ** 32 - 1)], data=bytes(64)), "unknown type 4294967295"),
    (gguf_bytes(infos=[info(kind=8, dims=(33,))], data=bytes(64)), "no multiple of the Q8_0 block"), (gguf_bytes(infos=[info(b"a\0b")], data=bytes(64)), "NUL byte"),
    (gguf_bytes(infos=[info(), info(offset=32)], data=bytes(64)), "'x' stands twice"), (gguf_bytes(infos=[info(), info(b"y")], data=bytes(64)), "overlaps"),
    (gguf_bytes(infos=[info(dims=(16,)), info(b"y", offset=32)], data=bytes(64)), "'y' overlaps 'x'"), (gguf_bytes(infos=[text(b"x" * 9) + u32(1)], n_tensors=1), "ends inside|do not fit"),
])
def test_malformed_gguf(tmp_path, content, message):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        _C.TensorFile(path)
    assert str(path) in str(caught.value) or "general.alignment" in str(caught.value)


def test_unusual_but_valid_gguf(tmp_path):
    path = tmp_path / "x.gguf"
    nested = u32(9) + u64(2) + u32(4) + u64(2) + u32(1, 2) + u32(8) + u64(1) + text(b"\xff")
    entries = [kv(b"general.alignment", 4, u32(8)), kv(b"k", 9, nested), kv(b"", 9, u32(9) + u64(0)), kv(b"e", 9, u32(8) + u64(0))]
    path.write_bytes(gguf_bytes(entries, [info(dims=(2, 1, 3), offset=8), info(b"", dims=(), offset=0), info(b"z", dims=(4, 0))],
                                struct.pack("<ff6f", 7, 0, 1, 2, 3, 4, 5, 6), alignment=8, version=2))
    f = _C.TensorFile(path)
    assert f.names == ["x", "", "z"] and f.info("x") == ("F32", (3, 1, 2)) and f.info("z") == ("F32", (0, 4))
    assert f.read("x").tolist() == [[[1, 2]], [[3, 4]], [[5, 6]]] and f.read("") == 7 and f.read("z").shape == (0, 4)
    assert f.metadata == {"general.alignment": 8, "k": [[1, 2], ["\udcff"]], "": [], "e": []}
    path.write_bytes(gguf_bytes())
    assert _C.TensorFile(path).names == [] and _C.TensorFile(tmp_path).metadata == {}      # the only .gguf of its folder
    (tmp_path / "y.gguf").write_bytes(gguf_bytes())
    with pytest.raises(FormatError, match="several .gguf"):
        _C.TensorFile(tmp_path)


def exercise(path):
    """Opens and reads everything; True when the file was accepted."""
    try:
        f = _C.TensorFile(path)
    except (FormatError, OSError):
        return False
    assert isinstance(f.metadata, dict)
    for name in f.names:
        kind, shape = f.info(name)
        try:
            assert f.read(name).shape == shape
        except FormatError as error:
            assert kind in str(error)
    return True


@pytest.fixture(params=["safetensors", "gguf", "index"])
def sample(request, tmp_path, rng):
    """A valid file of some kB, and what to open."""
    x = rng.standard_normal((6, 32)).astype("f4")
    if request.param == "gguf":
        kinds = (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1)
        return write_gguf(tmp_path / "x.gguf", {k.name: (gguf.quants.quantize(x, k), k) for k in kinds}, METADATA)
    if request.param == "safetensors":
        save_file({"a": x, "b": x.astype("f2"), "c": np.arange(9), "d": np.zeros((0, 3), "f4")}, tmp_path / "x.safetensors", metadata={"a": "b"})
        return tmp_path / "x.safetensors"
    return shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": {"a": x}, "2.safetensors": {"b": x}}) / "model.safetensors.index.json"


def test_every_prefix(sample):
    whole = sample.read_bytes()
    assert 70 < len(whole) <= 20_000 and exercise(sample)
    end = len(whole)
    for n in reversed(range(len(whole))):
        os.truncate(sample, n)
        if exercise(sample):    # only the padding behind the last tensor may be missing
            assert sample.suffix == ".gguf" and len(whole) - n < 32, n
            end = n
    sample.write_bytes(whole[:end])
    assert exercise(sample)


def test_byte_flips(sample):
    rng = random.Random(11)
    whole = sample.read_bytes()
    header = min(len(whole), 1500)      # mostly where the structure is
    file = os.open(sample, os.O_WRONLY)     # written in place: some file systems sync a file that was truncated first
    for _ in range(2_000):
        broken = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(header if rng.random() < 0.9 else len(whole))
            broken[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, broken[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
        os.pwrite(file, broken, 0)
        exercise(sample)
    os.close(file)


def test_memory_is_flat(sample):
    broken = sample.with_name("broken" + sample.suffix)
    broken.write_bytes(sample.read_bytes()[:-100])

    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for n in range(1_100):
        exercise(sample)
        exercise(broken)
        if n == 100:
            before = resident()
    assert resident() - before < 1 << 20


def test_refcounts(tmp_path):
    path, name, arrays = str(tmp_path / "x.safetensors"), "a name of a tensor", {"a name of a tensor": np.ones((2, 2), "f4")}
    watched = (path, name, arrays, arrays[name], _C.TensorFile)

    def everything():
        _C.write_safetensors(path, arrays, metadata={"k": "v"})
        f = _C.TensorFile(path)
        assert f.names == [name] and f.info(name) and f.read(name).any() and f.metadata
        for call, error in ((lambda: f.read("nope"), KeyError), (lambda: f.read(1), TypeError), (lambda: f.info(b"x"), TypeError), (lambda: f.read(), TypeError),
                            (lambda: _C.TensorFile(path + "nope"), OSError), (lambda: _C.write_safetensors(path, {name: "text"}), ValueError),
                            (lambda: _C.write_safetensors(path, {1: arrays[name]}), TypeError), (lambda: _C.write_safetensors(path, arrays, dtype="F8"), ValueError),
                            (lambda: _C.write_safetensors(path, arrays, metadata={"k": 1}), ValueError), (lambda: _C.write_safetensors(path, [1]), TypeError),
                            (lambda: _C.write_safetensors(path, arrays, metadata={"k": {1}}), TypeError)):
            with pytest.raises(error):
                call()

    everything()
    before = [sys.getrefcount(x) for x in watched]
    for _ in range(10):
        everything()
    assert [sys.getrefcount(x) for x in watched] == before


@pytest.mark.parametrize(("arrays", "more", "message"), [
    ({"__metadata__": np.ones(1)}, {}, "twice"), ({"\udcff": np.ones(1)}, {}, "invalid UTF-8"), ({"a\0": np.ones(1)}, {}, "NUL"),
    ({"a": np.ones((1,) * 9)}, {}, "9 dimensions"), ({}, {"metadata": ["x"]}, "object of strings"), ({}, {"metadata": {"a": [1]}}, "object of strings"),
    ({}, {"dtype": "I8"}, "dtype must be F32, F16 or BF16, got 'I8'"),
])
def test_write_refuses(tmp_path, arrays, more, message):
    with pytest.raises(ValueError, match=message):
        _C.write_safetensors(tmp_path / "w.safetensors", arrays, **more)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "w.safetensors"
    _C.write_safetensors(target, {"a": np.ones(3)})
    before = target.read_bytes()
    # a limit on the size of files stands in for a full disk: write() fails midway (SIGXFSZ ignored, as Python does)
    code = ("import resource, sys, numpy as np\nfrom harmaug import _C\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "try:\n    _C.write_safetensors(sys.argv[1], {'a': np.ones(100_000)})\nexcept OSError as error:\n    print(error)")
    out = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True).stdout
    assert out == f"{target}: File too large\n"
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]
    with pytest.raises(OSError, match="No such file or directory"):
        _C.write_safetensors(tmp_path / "no" / "w.safetensors", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder: Is a directory"):
        _C.write_safetensors(tmp_path / "folder", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "w.safetensors"]


def test_unaligned_data_is_read(tmp_path, rng):
    """A header of odd length puts every tensor at an odd address."""
    x = rng.standard_normal(3_001).astype("f4")
    data = b"\x07" + x.tobytes() + x.astype("f2").tobytes()
    header = {"u": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "x": {"dtype": "F32", "shape": [3001], "data_offsets": [1, 12005]},
              "h": {"dtype": "F16", "shape": [3001], "data_offsets": [12005, 18007]}}
    f = _C.TensorFile(put_safetensors(tmp_path / "o.safetensors", header, data))
    np.testing.assert_array_equal(f.read("x"), x)
    np.testing.assert_array_equal(f.read("h"), x.astype("f2").astype("f4"))


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_prefixes_of_a_large_file(tmp_path, rng, kind):
    arrays = {f"layer.{i}.weight": rng.standard_normal((64, 64)).astype("f4") for i in range(60)}
    path = tmp_path / f"x.{kind}"
    if kind == "gguf":
        words = [f"word{i}" for i in range(20_000)]
        write_gguf(path, {k: (v, T.F32) for k, v in arrays.items()}, [("add_array", "words", words)])
    else:
        save_file(arrays, path, metadata={"words": " ".join(map(str, range(20_000)))})
    size = path.stat().st_size
    assert size > 1_000_000 and exercise(path)
    for n in sorted(random.Random(13).sample(range(size - 32), 2_000), reverse=True):
        os.truncate(path, n)
        with pytest.raises(FormatError):
            _C.TensorFile(path)
