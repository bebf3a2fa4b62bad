#include "kernels/vec_avx2.h"
#include "kernels/kernels_impl.h"

HA_KERNELS_TABLE(avxvnni);
