# The instruction sets of $(CC): kernels_<isa>.c -> its own flags, the same as in setup.py. For the Makefiles here and in tests/c; $(SRC) is this folder.
AVX2 := -mavx2 -mfma -mf16c
AVX512 := $(AVX2) -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl
ISA_avx2 := $(AVX2)
ISA_avx512 := $(AVX512)
ISA_avx512bf16 := $(AVX512) -mavx512bf16
ISA_neon :=
MACHINE := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))
accepts = $(shell echo 'int x;' | $(CC) $(1) -x c -c - -o /dev/null 2>/dev/null && echo yes)
ifeq ($(MACHINE),x86_64)
KNOWN_ISAS := avx2 avx512 avx512bf16
else ifeq ($(MACHINE),aarch64)
KNOWN_ISAS := neon
endif
ISAS := $(foreach isa,$(KNOWN_ISAS),$(if $(and $(wildcard $(SRC)/kernels/kernels_$(isa).c),$(call accepts,$(ISA_$(isa)))),$(isa)))
HAVE := $(foreach isa,$(ISAS),-DHA_HAVE_$(shell echo $(isa) | tr a-z A-Z)=1)
OPENMP ?= $(shell echo 'int main(void){return 0;}' | $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && echo -fopenmp)
