"""Build of the one C extension, `harmaug._C`. Metadata lives in pyproject.toml.

Environment switches (all optional):
    HARMAUG_OPENMP=0     build without OpenMP (the default is: use it where a test program links)
    HARMAUG_SANITIZE=1   AddressSanitizer + UndefinedBehaviorSanitizer, -O1
    HARMAUG_WERROR=1     warnings are errors (CI)
    HARMAUG_ABI3=1       limited API, one cp311-abi3 wheel
    CC, CFLAGS, LDFLAGS  as everywhere; LIBOMP_PREFIX on macOS where libomp is not Homebrew's

What is built for the target follows from the compiler's macros and from test programs, never from this machine's name, so that a
cross-compiler builds for its target.
"""
from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, PlatformError

ABI3 = os.environ.get("HARMAUG_ABI3") == "1"

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = AVX2 + ["-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]
X86 = "#if !defined(__x86_64__)\n#error not x86-64\n#endif\n"
PROBES = {
    "avx2": X86 + """#include <immintrin.h>
__m256 ha_probe(__m256 a, __m128i h) { return _mm256_fmadd_ps(a, _mm256_cvtph_ps(h), a); }
""",
    "avx512": X86 + """#include <immintrin.h>
__m512 ha_probe(__m512 a, __mmask64 m, __m512i b)
{
    return _mm512_and_ps(_mm512_scalef_ps(a, a), _mm512_castsi512_ps(_mm512_maskz_mov_epi8(m, b)));
}
""",
    "avx512vnni": X86 + """#include <immintrin.h>
__m512i ha_probe(__m512i a, __m512i b) { return _mm512_dpbusd_epi32(a, b, b); }
""",
    "avx512bf16": X86 + """#include <immintrin.h>
__m512 ha_probe(__m512 a, __m512i b) { return _mm512_dpbf16_ps(a, (__m512bh)b, (__m512bh)_mm512_dpbusd_epi32(b, b, b)); }
""",
    "avxvnni": X86 + """#include <immintrin.h>
__m256i ha_probe(__m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(a, b, b); }
""",
    "neon": """#if !defined(__aarch64__)
#error not aarch64
#endif
#include <arm_neon.h>
float32x4_t ha_probe(float32x4_t a, float16x4_t h) { return vfmaq_f32(a, a, vcvt_f32_f16(h)); }
""",
    "neondot": """#if !defined(__aarch64__)
#error not aarch64
#endif
#include <arm_neon.h>
int32x4_t ha_probe(int32x4_t a, int8x16_t b) { return vdotq_s32(a, b, b); }
""",
}
# kernels_<isa>.c -> the flags that one file, and no other, is compiled with
ISAS = {"avx2": AVX2, "avxvnni": AVX2 + ["-mavxvnni"], "avx512": AVX512, "avx512vnni": AVX512 + ["-mavx512vnni"],
        "avx512bf16": AVX512 + ["-mavx512vnni", "-mavx512bf16"], "neon": [], "neondot": ["-march=armv8.2-a+dotprod"]}


def package_hint(debian: str, fedora: str, macos: str) -> str:
    if sys.platform == "darwin":
        return macos
    return f"`apt install {debian}` (Debian, Ubuntu) or `dnf install {fedora}` (Fedora)"


class BuildExt(build_ext):
    def _builds(self, code: str, cflags: Sequence[str] = (), lflags: list[str] | None = None, include_dirs: Sequence[str] = ()) -> bool:
        """True when `code` compiles with these flags and, given link flags, links."""
        with tempfile.TemporaryDirectory() as tmp, open(os.devnull, "w") as null:
            src = Path(tmp, "probe.c")
            src.write_text(code)
            saved = os.dup(2)
            os.dup2(null.fileno(), 2)       # a probe that fails is an answer, not an error message
            try:
                objs = self.compiler.compile([str(src)], output_dir=tmp, include_dirs=list(include_dirs), extra_postargs=list(cflags))
                if lflags is not None:
                    self.compiler.link_shared_object(objs, str(Path(tmp, "probe.so")), extra_postargs=lflags)
            except (CompileError, LinkError):
                return False
            finally:
                os.dup2(saved, 2)
                os.close(saved)
        return True

    def _check_tools(self, ext: Extension) -> None:
        if sys.platform == "win32":
            raise PlatformError("harmaug does not build on Windows yet: install it inside WSL (Windows Subsystem for Linux)")
        if not self._builds("#include <stdlib.h>\nint ha_probe(void) { return abs(-1); }\n", [], []):
            command = " ".join(getattr(self.compiler, "compiler_so", ["cc"])[:1])
            raise PlatformError(f"no working C compiler (tried {command}): install one with "
                                + package_hint("gcc libc6-dev", "gcc", "`xcode-select --install`"))
        if not self._builds("#include <Python.h>\nint ha_probe(void) { return PY_MAJOR_VERSION; }\n",
                            include_dirs=ext.include_dirs + list(self.include_dirs or [])):
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise PlatformError(f"Python.h of Python {version} not found: install it with "
                                + package_hint(f"python{version}-dev", "python3-devel", "a Python from python.org or Homebrew"))

    def _openmp(self) -> tuple[list[str], list[str]]:
        """(compile flags, link flags); both empty when no OpenMP runtime can be linked."""
        if os.environ.get("HARMAUG_OPENMP", "1") == "0":
            return [], []
        tries = [(["-fopenmp"], ["-fopenmp"])]
        if sys.platform == "darwin":        # Apple clang: libomp comes from Homebrew, or not at all
            prefixes = [os.environ.get("LIBOMP_PREFIX"), "/opt/homebrew/opt/libomp", "/usr/local/opt/libomp"]
            tries = [(["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"], [f"-L{prefix}/lib", "-lomp"]) for prefix in prefixes if prefix]
        code = "#include <omp.h>\nint ha_probe(void) { return omp_get_max_threads(); }\n"
        for cflags, lflags in tries:
            if self._builds(code, cflags, lflags):
                return cflags, lflags
        print("warning: no OpenMP runtime found, building single-threaded; for threads install it with "
              + package_hint("libgomp1 (with clang: libomp-dev)", "libgomp (with clang: libomp-devel)", "`brew install libomp`")
              + " and build again", file=sys.stderr)
        return [], []

    def _compile(self, jobs: list[tuple[str, list[str]]], ext: Extension) -> list[str]:
        """Objects of (source, flags) jobs, several at a time; what is newer than its source and every header is kept."""
        headers = max((Path(h).stat().st_mtime for h in ext.depends), default=0.0)
        macros = list(ext.define_macros)

        def one(job: tuple[str, list[str]]) -> str:
            source, flags = job
            key = hashlib.sha256(repr((flags, macros, ext.include_dirs, self.compiler.compiler_so)).encode()).hexdigest()[:12]
            folder = str(Path(self.build_temp, key))
            target = Path(self.compiler.object_filenames([source], output_dir=folder)[0])
            if not self.force and target.exists() and target.stat().st_mtime > max(headers, Path(source).stat().st_mtime):
                return str(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as part:   # an interrupted compiler leaves no object that looks finished
                made = self.compiler.compile([source], output_dir=part, macros=macros, include_dirs=ext.include_dirs, extra_postargs=flags)[0]
                os.replace(made, target)
            return str(target)

        with ThreadPoolExecutor(self.parallel if isinstance(self.parallel, int) and self.parallel > 1 else os.cpu_count() or 1) as pool:
            return list(pool.map(one, jobs))

    def build_extension(self, ext: Extension) -> None:
        self._check_tools(ext)
        omp_c, omp_l = self._openmp()
        # no contraction: a*b + c means the same in every file and with every compiler; vf_fma is where kernels ask for a fused one
        # -g1: lines for a debugger; variables' places (-g) cost half of the compiler's time
        common = ["-std=c11", "-O3", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall", "-Wextra"]
        if os.environ.get("HARMAUG_SANITIZE") == "1":
            sanitize = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-O1"]
            common, omp_l = common + sanitize, omp_l + sanitize
        if os.environ.get("HARMAUG_WERROR") == "1":
            common.append("-Werror")
        common += omp_c

        jobs = []
        for isa, flags in ISAS.items():
            if self._builds(PROBES[isa], flags):
                ext.define_macros.append((f"HA_HAVE_{isa.upper()}", "1"))
                jobs.append((f"csrc/kernels/kernels_{isa}.c", common + flags))
            elif not isa.startswith("neon") and self._builds(X86):
                print(f"warning: the compiler does not know {isa}; its kernels are left out", file=sys.stderr)
        jobs += [(source, common) for source in ext.sources]
        objects = self._compile(jobs, ext)
        ext.sources, ext.extra_objects, ext.depends = [], objects, objects      # what is left for setuptools is to link
        ext.extra_link_args = omp_l + ["-lm"]
        super().build_extension(ext)


isa_files = {f"kernels_{isa}.c" for isa in ISAS}    # build_extension compiles these with their own flags
ext = Extension(
    "harmaug._C",
    sources=sorted(str(p) for p in Path("csrc").rglob("*.c") if p.name not in isa_files and p.parent.name != "program"),
    depends=sorted(str(p) for p in Path("csrc").rglob("*.h")),
    include_dirs=["csrc", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_22_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_1_22_API_VERSION")]
                  + ([("Py_LIMITED_API", "0x030B0000")] if ABI3 else []),
    py_limited_api=ABI3,
)
setup(ext_modules=[ext], cmdclass={"build_ext": BuildExt},
      options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {})
