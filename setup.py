"""Build of the one C extension, `harmaug._C`. Metadata lives in pyproject.toml.

Environment switches (all optional):
    HARMAUG_OPENMP=0     build without OpenMP (the default is: use it where a test program links)
    HARMAUG_SANITIZE=1   AddressSanitizer + UndefinedBehaviorSanitizer, -O1 -g
    HARMAUG_WERROR=1     warnings are errors (CI)
    HARMAUG_ABI3=1       limited API, one cp311-abi3 wheel
"""
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MSVC = sys.platform == "win32"
X86 = platform.machine().lower() in ("x86_64", "amd64")
ABI3 = os.environ.get("HARMAUG_ABI3") == "1"

# kernels_<isa>.c -> the flags that one file, and no other, is compiled with
ISA_FLAGS = {
    "avx2": ["/arch:AVX2"] if MSVC else ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["/arch:AVX512"] if MSVC else
              ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"],
} if X86 else {}


class BuildExt(build_ext):
    def _links(self, code, cflags, lflags):
        """True when `code` compiles and links with these flags."""
        with tempfile.TemporaryDirectory() as tmp:
            src = Path(tmp, "probe.c")
            src.write_text(code)
            try:
                objs = self.compiler.compile([str(src)], output_dir=tmp, extra_postargs=cflags)
                self.compiler.link_shared_object(objs, str(Path(tmp, "probe.so")), extra_postargs=lflags)
            except Exception:
                return False
        return True

    def _openmp(self):
        """(compile flags, link flags); both empty when no OpenMP runtime can be linked."""
        if os.environ.get("HARMAUG_OPENMP", "1") == "0":
            return [], []
        tries = [(["-fopenmp"], ["-fopenmp"])]
        if MSVC:
            tries = [(["/openmp:llvm"], [])]
        elif sys.platform == "darwin":  # Apple clang: libomp comes from Homebrew, or not at all
            for prefix in filter(None, [os.environ.get("LIBOMP_PREFIX"), "/opt/homebrew/opt/libomp", "/usr/local/opt/libomp"]):
                tries.append((["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"], [f"-L{prefix}/lib", "-lomp"]))
        code = "#include <omp.h>\nint ha_probe(void) { return omp_get_max_threads(); }\n"
        for cflags, lflags in tries:
            if self._links(code, cflags, lflags):
                return cflags, lflags
        self.warn("no OpenMP runtime found: building single-threaded (see README, 'Threads')")
        return [], []

    def build_extension(self, ext):
        omp_c, omp_l = self._openmp()
        common = ["/std:c11", "/O2"] if MSVC else ["-std=c11", "-O3", "-g", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall", "-Wextra"]
        if os.environ.get("HARMAUG_SANITIZE") == "1":
            san = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-O1"]
            common, omp_l = common + san, omp_l + san
        if os.environ.get("HARMAUG_WERROR") == "1":
            common.append("-Werror")
        ext.extra_compile_args = common + omp_c
        ext.extra_link_args = omp_l + ([] if MSVC else ["-lm"])

        # one file per ISA, each with its own flags; setuptools has no per-source flags, so compile them here
        for isa, flags in ISA_FLAGS.items():
            src = f"csrc/kernels/kernels_{isa}.c"
            if not self._links("int ha_probe(void) { return 0; }\n", flags, []):
                self.warn(f"compiler rejects {flags}: kernels for {isa} left out")
                continue
            ext.define_macros.append((f"HA_HAVE_{isa.upper()}", "1"))
            ext.extra_objects += self.compiler.compile(
                [src], output_dir=self.build_temp, include_dirs=ext.include_dirs,
                extra_postargs=common + omp_c + flags, depends=ext.depends)
        super().build_extension(ext)


ext = Extension(
    "harmaug._C",
    # every csrc/*/*.c but the per-ISA ones, which build_extension compiles with their own flags
    sources=sorted(str(p) for p in Path("csrc").rglob("*.c") if p.parent.name != "kernels" or not p.stem.endswith(("_avx2", "_avx512", "_avx512bf16", "_neon"))),
    depends=sorted(str(p) for p in Path("csrc").rglob("*.h")),
    include_dirs=["csrc", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_22_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_1_22_API_VERSION")]
                  + ([("Py_LIMITED_API", "0x030B0000")] if ABI3 else []),
    py_limited_api=ABI3,
)
setup(ext_modules=[ext], cmdclass={"build_ext": BuildExt},
      options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {})
