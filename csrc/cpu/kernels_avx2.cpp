#include <immintrin.h>

#include "kernels.hpp"

#define CEXNN_ISA avx2
#define CEXNN_ISA_NAME "avx2"
#define CEXNN_VECTOR_BYTES 32
#define CEXNN_TILE_ROWS 2
#define CEXNN_PANEL_ITEMS 6
#include "kernels.inc"
