"""safetensors and GGUF: against the safetensors and gguf packages, and against hostile files."""
import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from harmaug import FormatError, _C
from safetensors.numpy import load_file, save_file


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
    for kind, width in ((T.Q8_0, 34), (T.Q4_0, 18), (T.Q4_1, 20)):
        blocks = rng.integers(0, 256, (len(scales), width)).astype("u1")
        blocks[:, :2] = scales.view("u1").reshape(-1, 2)
        if kind == T.Q4_1:
            blocks[:, 2:4] = rng.permutation(scales).view("u1").reshape(-1, 2)
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
        if kind.name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"):
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
