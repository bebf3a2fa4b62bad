#include "kernels/vec_neon.h"
#include "kernels/kernels_impl.h"

HA_KERNELS_TABLE(neondot);
