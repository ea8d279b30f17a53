#include <immintrin.h>

#include "kernels.hpp"

#define CEXNN_ISA avx512vnni
#define CEXNN_ISA_NAME "avx512vnni"
#define CEXNN_VECTOR_BYTES 64
#define CEXNN_TILE_ROWS 4
#define CEXNN_PANEL_ITEMS 12
#include "kernels.inc"
