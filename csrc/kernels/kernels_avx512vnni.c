#include "kernels/vec_avx512.h"
#include "kernels/kernels_impl.h"

HA_KERNELS_TABLE(avx512vnni);
