#include <immintrin.h>

#include "kernels.hpp"

#define CEXNN_ISA avx2
#define CEXNN_ISA_NAME "avx2"
#define CEXNN_VECTOR_BYTES 32
#define CEXNN_BLOCK_QUERIES 2
#define CEXNN_BLOCK_ITEMS 4
#define CEXNN_PANEL_ITEMS 6
#include "kernels.inc"
