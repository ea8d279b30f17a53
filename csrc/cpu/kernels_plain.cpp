#include "kernels.hpp"

#define CEXNN_ISA plain
#define CEXNN_ISA_NAME "plain"
#define CEXNN_VECTOR_BYTES 16
#define CEXNN_TILE_ROWS 2
#define CEXNN_PANEL_ITEMS 6
#include "kernels.inc"
